"""Opening a storage: making one may touch a disk, which need not answer."""

from functools import partial

from bdr.errors import StorageUnavailable
from bdr.settings import BinaryStorageConfig
from bdr.settings.secrets import without_secrets
from bdr.storage.opendal import OpenDalStorage
from bdr.storage.patience import in_time
from bdr.threads import in_daemon_thread


async def open_storage(config: BinaryStorageConfig, *, name: str) -> OpenDalStorage:
    """The storage that `config` describes; `name` is how errors call it.

    Raises:
        ConfigError: an option is unknown, missing or wrong, or the service cannot write.
        PermissionDenied: the root's folder may not be created.
        StorageUnavailable: the file system that the root is in does not answer.
    """
    try:
        return await in_time(config.timeout, in_daemon_thread(partial(OpenDalStorage, config, name=name)))
    except TimeoutError as error:
        raise StorageUnavailable(
            f"could not open storage {name!r} at {without_secrets(config.root)}: {error.strerror} "
            "(check that it is mounted and answers)"
        ) from error
