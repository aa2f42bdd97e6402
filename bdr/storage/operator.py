"""Building an operator of OpenDAL, and refusing a service that cannot hold objects."""

from pathlib import Path

from opendal import AsyncOperator
from opendal.layers import TimeoutLayer

from bdr.errors import ConfigError
from bdr.settings import BinaryStorageConfig
from bdr.storage.durable import DirectorySync, prepare_root
from bdr.storage.options import ServiceOptions
from bdr.storage.runtime import RUNTIME
from bdr.storage.translate import Translator


def built_operator(service: ServiceOptions, config: BinaryStorageConfig, translated: Translator) -> AsyncOperator:
    """The operator, with timeouts on every call; ConfigError when the service refuses its options or cannot write."""
    RUNTIME.start()
    timeouts = TimeoutLayer(timeout=config.timeout.total_seconds(), io_timeout=config.io_timeout.total_seconds())
    with translated("open"):
        operator = AsyncOperator(service.scheme, **service.options).layer(timeouts)
    can = operator.capability()
    if not (can.read and can.write and can.stat and can.delete):
        raise ConfigError(
            f"{translated} can hold no objects: the service {service.scheme} cannot write and delete them"
        )
    return operator


def prepared_folders(
    service: ServiceOptions, config: BinaryStorageConfig, translated: Translator
) -> DirectorySync | None:
    """For a file system: its root, created where missing, and what makes names below it durable."""
    if service.scheme != "fs":
        return None
    root = Path(service.options["root"])
    with translated("open"):
        prepare_root(root)
    return DirectorySync(root, patience=config.io_timeout)
