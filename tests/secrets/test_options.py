"""For every option of every service that OpenDAL has: a secret in it is shown nowhere, and is no part of a location."""

import pickle
import re

import pytest

import bdr
from bdr.errors import ConfigError
from bdr.settings import BinaryStorageConfig, load_settings
from bdr.settings.describe import describe_settings
from bdr.storage.options import service_options
from bdr.storage.services import _known_options
from tests.secrets.support import told_by

SECRET = "s3cr3t-w0rd"
_WORDS = re.compile(r"\w+")
# Whoever reads one of these can do what its owner can.
SECRETS = frozenset(
    _WORDS.findall(
        """
    access_key_secret access_token account_key api_token application_key client_secret connection_string credential
    delegation encryption_key key password refresh_token runtime_token sas_token secret_access_key secret_id
    secret_key security_token server_side_encryption_customer_key session_token temp_url_key token
    """
    )
)
# Names, places and switches. One that is on neither list came with a new OpenDAL, and somebody has to say which it is.
PLAIN = frozenset(
    _WORDS.findall(
        """
    access_key_id account_id account_name addressing_style allow_anonymous application_key_id
    assume_role_duration_seconds assume_role_session_tags atomic_write_dir authority_host batch_max_operations
    bucket bucket_id checksum_algorithm chunk_size client_id cluster_endpoints collection connection_pool_max_size
    container credential_path database datadir datafile db default_acl default_storage_class default_ttl
    delete_max_size disable_config_load disable_copy disable_create_dir disable_ec2_metadata disable_list_batch
    disable_list_objects_v2 disable_stat_with_override disable_vm_metadata disable_write_with_if_match download_mode
    drive_type email enable_append enable_conditional_read enable_copy enable_hns enable_request_payer
    enable_resolve_cache enable_user_metadata enable_versioning enable_virtual_host_style enable_write_with_append
    encryption_algorithm encryption_key_sha256 endpoint external_id filesystem index key_field known_hosts_strategy
    max_capacity name name_node namespace_id oidc_provider_arn oidc_token_file operator options predefined_acl
    presign_addressing_style presign_endpoint profile region repo_id repo_name repo_type revision role_arn
    role_session_name root scope segment server_side_encryption server_side_encryption_aws_kms_key_id
    server_side_encryption_customer_algorithm server_side_encryption_customer_key_md5 server_side_encryption_key_id
    service_account share_name skip_signature sts_endpoint table team_id team_slug temp_url_hash_algorithm tenant_id
    time_to_idle time_to_live tree user user_metadata_prefix user_metadata_uri user_name username value_field
    version
    """
    )
)
# Values that hold a secret beside what may be shown: of an endpoint, or of a connection string.
CARRIERS = [
    f"https://user:{SECRET}@host:9000/path",
    f"https://user:%41{SECRET}@host:9000/path",
    f"https://{SECRET}@host/path",
    f"https://host/path?X-Amz-Signature={SECRET}",
    f"https://host/path?X-Amz-Credential={SECRET}&X-Amz-Date=20261124",
    f"https://host/path?sv=2022&sig={SECRET}",
    f"https://host/path?Signature={SECRET}&Expires=1",
    f"https://host/path?auth={SECRET}",
    f"https://host/path?jwt={SECRET}",
    f"https://host/path?sv=1;sig={SECRET}",
    f"https://host/path#access_token={SECRET}",
]
STRINGS = [
    f"postgresql://user:{SECRET}@host/database",
    f"postgresql://host/database?user=u&password={SECRET}",
    f"host=host user=u password={SECRET} dbname=d",
    f"host=host user=u password='a {SECRET}' dbname=d",
    f"mysql://user:{SECRET}@host/database",
    f"mongodb+srv://user:a@b:{SECRET}@host/?x=1",
    f"AccountName=a;AccountKey={SECRET};EndpointSuffix=core",
]


def shown_of(storage_type: str, **options: str) -> str:
    """Everything that bdr shows of a storage with these options, the error included if they are refused."""
    root = "/tmp" if storage_type == "fs" else ""
    config = BinaryStorageConfig(storage_type=storage_type, root=root, config=options)
    settings = load_settings(storage=config, database_url="postgresql://host/database")
    shown = [str(config), repr(config), f"{config!s}", config.model_dump_json(), repr(settings), str(settings)]
    shown += [settings.model_dump_json(), repr(describe_settings(settings))]
    assert pickle.loads(pickle.dumps(config)).config == options, "it is needed all the same"
    try:
        service = service_options(config)
    except ConfigError as error:
        return "\n".join([*shown, told_by(error)])
    return "\n".join([*shown, repr(service), service.location])


def test_every_option_of_every_service_is_known_to_be_secret_or_not() -> None:
    options = set().union(*_known_options().values())
    assert options - SECRETS - PLAIN == set()
    assert set() == SECRETS & PLAIN


@pytest.mark.parametrize("service", sorted(_known_options()))
def test_no_secret_option_of_a_service_is_shown(service: str) -> None:
    for option in sorted(_known_options()[service] & SECRETS):
        # The one that is a place, too, has its secret among other things.
        values = STRINGS if option == "connection_string" else [SECRET, *STRINGS]
        assert [value for value in values if SECRET in shown_of(service, **{option: value})] == [], option


@pytest.mark.parametrize("service", sorted(one for one, options in _known_options().items() if "endpoint" in options))
def test_no_secret_in_an_endpoint_of_a_service_is_shown(service: str) -> None:
    assert [value for value in CARRIERS if SECRET in shown_of(service, endpoint=value)] == []


@pytest.mark.parametrize("name", sorted(SECRETS | {"access_key", "apikey", "pwd", "passphrase", "my_token"}))
def test_no_secret_of_a_service_that_nobody_knows_is_shown(name: str) -> None:
    config = BinaryStorageConfig(storage_type="unheard-of", config={name: SECRET, "url": CARRIERS[0]})
    assert SECRET not in repr(config) + str(config) + config.model_dump_json()
    with pytest.raises(bdr.ConfigError) as caught:
        service_options(config)
    assert SECRET not in told_by(caught.value)
