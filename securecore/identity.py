"""The one rule from text to HostName, shared by whoever issues certificates and whoever judges them."""

from collections.abc import Sequence

from securecore.names import HostName, NameRefused


def host_from_dns_names(dns_names: Sequence[str]) -> HostName:
    """Return the host that a certificate stands for: its only dNSName, exactly as written.

    *dns_names* are the dNSName entries of the subject alternative name, in order. Raises NameRefused when there is not exactly
    one, or when it is not a HostName: upper case, wildcards, control characters and dots in odd places are refused, not mended,
    because two spellings of one name would be two directories. Not checked: other kinds of alternative names, and the chain.
    """
    if len(dns_names) != 1:
        raise NameRefused(f"a host certificate names exactly one host, this one names {len(dns_names)}")
    return HostName(dns_names[0])


def host_from_operator(text: str, domain: str | None) -> HostName:
    """Return the host that a person means by *text*: case folded, completed with *domain* when it has no dot.

    Raises NameRefused when the result is not a HostName, when there is no dot and no domain to complete with, and on anything but
    ASCII: folding would turn the Kelvin sign into a plain k, and the name into one that nobody typed.
    """
    if not text.isascii():
        raise NameRefused(f"not a host name: {text[:300]!a}", hint="write an internationalised name in its xn-- form")
    name = text.strip().lower()
    if "." not in name:
        if not domain:
            raise NameRefused(f"not a full host name: {text[:300]!a}", hint="write it with its domain, as in web-1.example.org")
        name = f"{name}.{domain.lower()}"
    return HostName(name)
