"""From settings to OpenDAL's options: spellings, mistakes, and where the place is."""

from pathlib import Path
from typing import Any

import pytest

from bdr.errors import ConfigError
from bdr.settings import BinaryStorageConfig
from bdr.storage import OpenDalStorage, open_storage
from bdr.storage.options import ServiceOptions, service_options

KEYS = {"access_key": "AK", "secret_key": "SK-very-secret"}
MINIO = {"bucket": "data", "endpoint": "http://minio:9000"}


def options(storage_type: str, root: str = "", **config: Any) -> ServiceOptions:
    return service_options(BinaryStorageConfig(storage_type=storage_type, root=root, config=config))


def location(storage_type: str, root: str = "", **config: Any) -> str:
    return options(storage_type, root, **config).location


def test_the_short_s3_keys_are_opendals() -> None:
    assert options("s3", "pre/fix", **MINIO, **KEYS).options == {
        "bucket": "data",
        "endpoint": "http://minio:9000",
        "region": "us-east-1",
        "access_key_id": "AK",
        "secret_access_key": "SK-very-secret",
        "disable_config_load": "true",
        "root": "/pre/fix",
    }


def test_the_environments_credentials_are_used_when_none_are_given() -> None:
    assert "disable_config_load" not in options("s3", **MINIO).options
    assert options("s3", **MINIO, **KEYS, disable_config_load=False).options["disable_config_load"] == "false"


def test_a_region_is_only_assumed_where_an_endpoint_is_given() -> None:
    assert "region" not in options("s3", bucket="data").options
    assert options("s3", **MINIO, region="eu-west-1").options["region"] == "eu-west-1"


@pytest.mark.parametrize(
    ("root", "bucket", "prefix"), [("data", "data", "/"), ("/data/pre/fix", "data", "/pre/fix"), ("data/", "data", "/")]
)
def test_without_the_option_bucket_the_root_names_it(root: str, bucket: str, prefix: str) -> None:
    found = options("s3", root, endpoint="http://minio:9000").options
    assert (found["bucket"], found["root"]) == (bucket, prefix)


def test_options_of_the_service_are_passed_through_as_text() -> None:
    found = options("s3", **MINIO, enable_virtual_host_style=True, assume_role_duration_seconds=900).options
    assert found["enable_virtual_host_style"] == "true"
    assert found["assume_role_duration_seconds"] == "900"


@pytest.mark.parametrize(
    ("storage_type", "config", "sentence"),
    [
        ("s3", {"bukket": "x"}, "no option 'bukket'; did you mean 'bucket'"),
        ("s3", {"bucket": "x", "acces_key": "x"}, "no option 'acces_key'; did you mean 'access_key'"),
        ("s3", {}, "needs the option 'bucket'"),
        ("s3", {"bucket": "x", "access_key": "x"}, "give both or none"),
        ("s3", {"bucket": "x", "access_key": "x", "access_key_id": "x"}, "two names of one option"),
        ("s3", {"bucket": "x", "root": "y"}, "`root` is a setting of the storage itself"),
        ("memory", {"max_object_size": 0}, "'max_object_size' must be a number of bytes"),
        ("memory", {"max_object_size": "much"}, "'max_object_size' must be a number of bytes"),
        ("memory", {"bucket": "x"}, "no option 'bucket'"),
        ("redis", {"default_ttl": "1h"}, "'default_ttl' .* not allowed: .*retention"),
        ("redis", {"db": "first"}, "must be a number, not 'first'"),
        ("redis", {"endpoint": "redis://h:1/3", "db": 4}, "'db' and the one in the endpoint's URL differ"),
        (
            "redis",
            {"endpoint": "redis://:a@h:1", "password": "b"},
            "'password' and the one in the endpoint's URL differ",
        ),
        ("redis", {"endpoint": "redis://h:1?db=3"}, "takes no '[?]'"),
        ("redis", {"endpoint": "redis://:pass/word@h:1"}, "an endpoint of the storage is not a URL"),
        ("s3", {"bucket": "x", "endpoint": "http://h:port"}, "an endpoint of the storage is not a URL"),
        ("webdav", {"endpoint": "http://[::1"}, "an endpoint of the storage is not a URL"),
        ("redis", {"endpoint": "unix:///run/redis"}, "not unix:"),
        ("nfs", {}, "unknown storage type 'nfs'"),
        ("s33", {}, "did you mean 's3'"),
    ],
)
def test_a_mistake_is_named(storage_type: str, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        service_options(BinaryStorageConfig(storage_type=storage_type, config=config))


def test_a_root_is_refused_where_it_would_be_ignored() -> None:
    with pytest.raises(ConfigError, match="has no root, but 'prefix' is given"):
        options("cacache", "prefix", datadir="/tmp/x")


@pytest.mark.parametrize(
    ("storage_type", "config", "sentence"),
    [
        ("s3", {"bucket": "x"}, "region is missing"),
        ("sftp", {"endpoint": "h"}, "scheme is not registered"),
        ("http", {"endpoint": "http://127.0.0.1:1"}, "cannot write and delete"),
        ("s3", {"bucket": "x", "endpoint": "http://127.0.0.1:1", "checksum_algorithm": "sha1"}, "checksum_algorithm"),
    ],
)
async def test_what_opendal_refuses_is_a_configuration_error(
    storage_type: str, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        await open_storage(BinaryStorageConfig(storage_type=storage_type, config=config), name="main")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("s3", "a", MINIO), ("s3", "/a/", MINIO | {"endpoint": "http://MINIO:9000/"})),
        (("s3", "", MINIO), ("s3", "", MINIO | KEYS | {"region": "eu-west-1"})),
        (("s3", "", {"bucket": "b", "endpoint": "h"}), ("s3", "", {"bucket": "b", "endpoint": "https://h:443"})),
        (("s3", "b", {}), ("s3", "", {"bucket": "b", "endpoint": "https://s3.eu-west-1.amazonaws.com"})),
        (("redis", "a", {"endpoint": "h"}), ("redis", "/a", {"endpoint": "redis://u:p@h:6379/0", "db": 0})),
        (("redis", "", {}), ("redis", "", {"endpoint": "tcp://127.0.0.1:6379"})),
        (("redis", "", {"cluster_endpoints": "a:1,b:1"}), ("redis", "", {"cluster_endpoints": "redis://b:1,a:1"})),
        (
            ("azblob", "", {"container": "c", "endpoint": "https://h"}),
            ("azblob", "/", {"container": "c", "endpoint": "h"}),
        ),
    ],
)
def test_one_place_has_one_location(one: tuple[str, str, Any], other: tuple[str, str, Any]) -> None:
    assert location(one[0], one[1], **one[2]) == location(other[0], other[1], **other[2])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("s3", "a", MINIO), ("s3", "b", MINIO)),
        (("s3", "", MINIO), ("s3", "", MINIO | {"bucket": "other"})),
        (("s3", "", MINIO), ("s3", "", MINIO | {"endpoint": "http://minio:9001"})),
        (("s3", "b", {}), ("s3", "b", {"endpoint": "https://s3.cn-north-1.amazonaws.com.cn"})),
        (("redis", "", {}), ("redis", "", {"db": 1})),
        (("redis", "a", {}), ("redis", "b", {})),
        (("azblob", "", {"container": "c"}), ("azblob", "", {"container": "d"})),
        (
            ("sqlite", "", {"connection_string": "sqlite:///a", "table": "t"}),
            ("sqlite", "", {"connection_string": "sqlite:///b", "table": "t"}),
        ),
    ],
)
def test_two_places_have_two_locations(one: tuple[str, str, Any], other: tuple[str, str, Any]) -> None:
    assert location(one[0], one[1], **one[2]) != location(other[0], other[1], **other[2])


@pytest.mark.parametrize(
    ("storage_type", "config"),
    [
        ("s3", MINIO | {"endpoint": "http://user:hush@minio:9000", "access_key": "hush", "secret_key": "hush"}),
        ("redis", {"endpoint": "redis://user:hush@h:1", "db": 3}),
        ("redis", {"cluster_endpoints": "redis://:hush@h:1"}),
        ("mysql", {"connection_string": "mysql://user:hu@sh@h/db?password=hush", "table": "t"}),
        ("webdav", {"endpoint": "https://user:hush@h/dav", "password": "hush", "token": "hush"}),
        ("azblob", {"container": "c", "account_key": "hush", "sas_token": "hush", "endpoint": "https://h?sig=hush"}),
    ],
)
def test_no_secret_is_shown(storage_type: str, config: dict[str, Any]) -> None:
    found = options(storage_type, **config)
    assert "hush" not in found.location + repr(found)
    assert "hu@sh" not in found.location


def test_a_folder_is_the_same_through_links_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    written = [str(tmp_path / "real"), "real", "./link/", "link/../real", "~/link"]
    assert {location("fs", root) for root in written} == {f"fs:{tmp_path}/real"}
    assert options("fs", "new/folder").options == {"root": f"{tmp_path}/new/folder"}
    assert options("file", "real").scheme == "fs"


async def test_a_root_that_can_be_no_folder_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for root in ("file", "file/below", "loop", "a" * 300, "a\0b"):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            await open_storage(BinaryStorageConfig(storage_type="fs", root=str(tmp_path / root)), name="main")


def test_a_storage_satisfies_the_protocol() -> None:
    from bdr.storage import BinaryDataStorage

    def accepts(storage: BinaryDataStorage) -> str:
        return storage.fingerprint

    memory = BinaryStorageConfig(storage_type="memory")
    assert len(accepts(OpenDalStorage(memory, name="main"))) == 64
