"""All fuzz targets, by name."""

from typing import Final

from tests.fuzz.target import Target
from tests.fuzz.targets import audit, certs, crash, dump, kept, local, programs, receiving, shown, store, wire

TARGETS: Final[dict[str, Target]] = {
    "frame": dump.FRAME,
    "container": dump.CONTAINER,
    "unpacking": programs.UNPACKING,
    "manifest": dump.MANIFEST,
    "message": wire.MESSAGE,
    "connection": wire.CONNECTION,
    "certificate": certs.CERTIFICATE,
    "anchors": certs.ANCHORS,
    "revocation": certs.REVOCATION,
    "token": certs.TOKEN,
    "entry": audit.ENTRY,
    "checkpoint": audit.CHECKPOINT,
    "proof": audit.PROOF,
    "statement": audit.STATEMENT,
    "bundle": audit.BUNDLE,
    "kept-receipt": kept.KEPT_RECEIPT,
    "wide-entry": kept.WIDE_ENTRY,
    "log": store.LOG,
    "resume": store.RESUME,
    "report": crash.REPORT,
    "summary": crash.SUMMARY,
    "elf-size": crash.ELF_SIZE,
    "core": crash.CORE,
    "program": programs.PROGRAM,
    "arguments": crash.ARGUMENTS,
    "local-options": programs.LOCAL_OPTIONS,
    "procfs": crash.PROCFS,
    "settings": local.SETTINGS,
    "configuration": local.CONFIGURATION,
    "receiver-configuration": receiving.CONFIGURATION,
    "spool": local.SPOOL,
    "ledger": local.LEDGER,
    "pki-settings": local.PKI_SETTINGS,
    "row": shown.ROW,
    "log-row": shown.LOG_ROW,
    "inspection": shown.INSPECTION,
    "control-request": local.CONTROL_REQUEST,
    "names": local.NAMES,
}
