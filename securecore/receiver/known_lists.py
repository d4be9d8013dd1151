"""That no older revocation lists come into force than those that this store has seen, also over a restart.

At a reload the lists in force are at hand, and material.py compares. A start has but the disk: the lists that the store keeps.
"""

from securecore.certs.revocation import RevocationLists
from securecore.errors import ConfigError, StorageError
from securecore.receiver.commit import Committer
from securecore.receiver.material import Material
from securecore.receiver.observer import log, quoted
from securecore.store.crls import kept_crls
from securecore.store.layout import Store


def check_at_start(store: Store, committer: Committer, material: Material) -> None:
    """Raise ConfigError when *material* has an older list of some CA than the store, and keep its lists; raises StorageError.

    Also at a first start, after which no dump may come for long. Lists of CAs that are believed no more are passed over, as are
    kept ones that can't be read.
    """
    for pem in kept_crls(store):
        try:
            known = RevocationLists.parse_known(pem, material.identity.anchors)
        except ConfigError:
            continue
        material.revocation.check_not_older_than(known, material.identity.anchors)
    committer.keep_lists(material.crl)


def keep_after_reload(committer: Committer, material: Material) -> None:
    """Keep the lists that came into force; a disk that refuses is logged, for they count all the same."""
    try:
        committer.keep_lists(material.crl)
    except StorageError as error:
        log.error("the revocation lists in force cannot be kept: %s", quoted(error.message))
