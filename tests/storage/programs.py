"""Programs that the tests of the traps run in an interpreter of their own."""

# Nothing of Python's own after OpenDAL's last call, such as the sync of a folder: it would hide the abort.
EXIT_AT_ONCE = """
async def main():
    storage = OpenDalStorage(BinaryStorageConfig(**json.loads(sys.argv[1])), name="main")
    await storage._operator.write(sys.argv[2], b"data")
asyncio.run(main())
"""
FORKS = """
async def child(config):
    storage = None
    try:
        storage = await open_storage(config, name="main")
    except ValueError as error:
        print("new:", error)
    return storage

async def in_child(storage, config):
    try:
        await storage.exists("object")
    except ValueError as error:
        print("old:", error)
    await child(config)

async def parent(config):
    storage = await open_storage(config, name="main")
    await storage.store("object", b"data")
    return storage

config = BinaryStorageConfig(storage_type="fs", root=sys.argv[1])
storage = asyncio.run(parent(config))
pid = os.fork()
if pid == 0:
    asyncio.run(asyncio.wait_for(in_child(storage, config), 5))
    sys.stdout.flush()
    os._exit(0)
print("child ended with", os.waitpid(pid, 0)[1])
"""
FULL = """
import resource
async def chunks():
    for _ in range(20):
        yield bytes(1 << 20)

async def main():
    storage = await open_storage(BinaryStorageConfig(storage_type="fs", root=sys.argv[1]), name="main")
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    for write in (storage.store("one", bytes(4 << 20)), storage.store_stream("many", chunks())):
        try:
            await write
        except OSError as error:
            print(type(error).__name__, error)
    print(await storage.exists("many"))
    await storage.close()
asyncio.run(main())
"""
# A mount whose server has gone silent: whoever asks it for a folder, or for bytes, never comes back.
SILENT = """
import threading
from bdr import threads
from bdr.errors import StorageUnavailable

silent = threading.Event()
opened = os.open

def open_file(path, flags, *more, **named):
    if flags & os.O_DIRECTORY:
        silent.wait()
    return opened(path, flags, *more, **named)

def hang(*given):
    silent.wait()

async def chunks():
    yield bytes(9 << 20)

async def main():
    given = {"storage_type": "fs", "timeout": "1s", "io_timeout": "1s"}
    storage = await open_storage(BinaryStorageConfig(root=sys.argv[1], **given), name="main")
    await storage.store("ab/there", b"there")
    os.open, os.scandir, os.pread = open_file, hang, hang
    for call in (
        storage.store("ab/one", b"data"),
        storage.store_stream("ab/many", chunks()),
        storage.delete("ab/one"),
        storage.retrieve("ab/there"),
        storage.retrieve_range("ab/there", 1, 3),
        anext(aiter(storage.list_objects())),
        open_storage(BinaryStorageConfig(root=sys.argv[2], **given), name="other"),
    ):
        try:
            await call
        except StorageUnavailable as error:
            print(error)
    await storage.close()
    print(sum(thread.daemon for thread in threading.enumerate()) - len(threads._spare))
asyncio.run(main())
"""
