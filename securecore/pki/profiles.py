"""The profiles as TOML: what ``pki/profiles/*.toml`` states and ``pki profile show`` prints."""

from securecore.certs.profiles import BACKDATED_S, KEY_TYPE, PROFILES, SIGNATURE, Profile
from securecore.errors import NotFoundError


def profile_named(name: str) -> Profile:
    """Return a profile by name; raises NotFoundError."""
    if name not in PROFILES:
        raise NotFoundError(f"no profile is called {name[:100]!a}", hint=f"the profiles are {', '.join(PROFILES)}")
    return PROFILES[name]


def as_table(profile: Profile) -> dict[str, object]:
    """Return everything that a profile fixes, as nested tables; the shape is that of its TOML file."""
    values: dict[str, dict[str, object]] = {
        "basic_constraints": {"ca": profile.is_ca},
        "key_usage": {"uses": list(profile.key_usage)},
        "extended_key_usage": {"uses": list(profile.extended_key_usage)},
        "name_constraints": {"permitted": ["dns"]},
        "subject_alternative_name": {
            kind: {"minimum": least, "maximum": greatest} for kind, (least, greatest) in profile.alternative_names.items()
        },
        "subject_key_identifier": {},
        "authority_key_identifier": {},
    }
    if profile.path_length is not None:
        values["basic_constraints"]["path_length"] = profile.path_length
    return {
        "profile": profile.name,
        "signed_by": profile.signed_by,
        "key": {"type": KEY_TYPE, "signature": SIGNATURE},
        "validity": {"default_days": profile.default_days, "max_days": profile.max_days, "backdated_s": BACKDATED_S},
        "subject": {"attributes": ["organization_name", "common_name"], "read_by_the_judge": False},
        "extensions": {name: {"critical": critical, **values[name]} for name, critical in profile.extensions.items()},
    }


def as_toml(profile: Profile) -> str:
    """Return a profile as TOML text, without the sources that the file in ``pki/profiles`` gives for each value."""
    return _tables(as_table(profile), ())


def _tables(table: dict[str, object], path: tuple[str, ...]) -> str:
    """Return the text of one table, its plain values first, then its sub-tables."""
    plain = [f"{key} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    head = [f"[{'.'.join(path)}]"] if path and plain else []
    text = "\n".join([*head, *plain])
    rest = [_tables(value, (*path, key)) for key, value in table.items() if isinstance(value, dict)]
    return "\n\n".join(part.rstrip("\n") for part in [text, *rest] if part) + "\n"


def _value(value: object) -> str:
    """Return a TOML value; the texts here are our own, plain ASCII without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
