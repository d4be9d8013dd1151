"""What all sessions of a receiver share."""

from collections.abc import Callable
from datetime import datetime

from securecore.audit.log import HostLogs
from securecore.receiver.abandonment import Abandonment
from securecore.receiver.admission import Admission
from securecore.receiver.arrivals import Arrivals
from securecore.receiver.commit import Committer
from securecore.receiver.host_lines import HostLines
from securecore.receiver.intake import Intake
from securecore.receiver.material import Material
from securecore.receiver.policy import Policy
from securecore.receiver.presence import Presence
from securecore.receiver.refusals import RefusalNotes
from securecore.receiver.turns import Turns
from securecore.store.layout import Store
from securecore.store.usage import Usage


class Service:
    """The store and what works on it; *material* and *policy* are replaced by a reload."""

    def __init__(
        self,
        store: Store,
        material: Material,
        logs: HostLogs,
        committer: Committer,
        abandonment: Abandonment,
        clock: Callable[[], datetime],
    ) -> None:
        self.store = store
        self.material = material
        self.committer = committer
        self.intake = Intake(store, abandonment, Arrivals(logs, clock))
        self.clock = clock
        self.policy = Policy()
        store.least_free = lambda total_bytes: self.policy.floor.least_free(total_bytes)
        self.presence = Presence()
        self.turns = Turns()
        usage = Usage(store)
        usage.follow()
        self.admission = Admission(store, usage, lambda: self.policy)
        self.refusals = RefusalNotes(store, logs, clock)
        self.lines = HostLines(clock)
