"""One URL chooses the driver; what can't be meant is refused before anything is sent."""

from pathlib import Path

import pytest
from libcloud.storage.providers import DRIVERS as LIBCLOUD

from storage.drivers import driver_class, parse_url
from storage.store import ObjectStore
from timestep.errors import UsageError


def test_s3_options_become_the_drivers() -> None:
    location = parse_url("s3://AKIA:a/b+c%3D@bucket/deep/prefix/?endpoint=http://127.0.0.1:9000&region=eu-west-1")
    assert (location.container, location.prefix) == ("bucket", "deep/prefix/")
    assert location.arguments == {
        "key": "AKIA",
        "secret": "a/b+c=",
        "secure": False,
        "host": "127.0.0.1",
        "port": 9000,
        "region": "eu-west-1",
    }


def test_credentials_can_be_options_and_are_never_shown() -> None:
    location = parse_url("s3://bucket/p?key=AKIA&secret=s3cr+t/&token=t0ken&region=us-east-1")
    assert (location.arguments["key"], location.arguments["secret"]) == ("AKIA", "s3cr+t/")
    assert location.url == "s3://bucket/p?region=us-east-1"
    for secret in ("AKIA", "s3cr", "t0ken"):
        assert secret not in repr(location)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://k:s@bucket?region=eu-central-1", "S3StorageDriver"),
        ("gs://GOOG0123456789ABCXYZ:c2VjcmV0@bucket?project=p", "GoogleStorageDriver"),
        ("azure://account:c2VjcmV0@container", "AzureBlobsStorageDriver"),
        ("azure://account:c2VjcmV0@container?endpoint=http://127.0.0.1:10000", "AzureBlobsStorageDriver"),
        ("azure-blobs://account:c2VjcmV0@container", "AzureBlobsStorageDriver"),
        ("backblaze_b2://k:s@bucket", "BackblazeB2StorageDriver"),
        ("backblaze-b2://k:s@bucket", "BackblazeB2StorageDriver"),
        ("minio://k:s@bucket?endpoint=http://127.0.0.1:9000", "MinIOStorageDriver"),
        ("digitalocean-spaces://k:s@bucket?region=nyc3", "DigitalOceanSpacesStorageDriver"),
        ("aliyun-oss://k:s@bucket", "OSSStorageDriver"),
        ("scaleway://k:s@bucket?region=fr-par", "ScalewayStorageDriver"),
        ("ovh://k:s@bucket?region=gra", "OvhStorageDriver"),
    ],
)
def test_drivers_are_opened_by_name(url: str, name: str) -> None:
    assert type(parse_url(url).connect()).__name__ == name
    assert ObjectStore.open(url).url


@pytest.mark.parametrize("name", sorted(set(LIBCLOUD) - {"dummy"}))
def test_every_driver_of_libcloud_has_a_scheme(name: str) -> None:
    assert driver_class(name.replace("_", "-")) is driver_class(name)


def test_local_is_ours(tmp_path: Path) -> None:
    location = parse_url(f"local://{tmp_path}/with space #1?%20")
    assert type(location.connect()).__name__ == "AtomicLocalDriver"
    assert (tmp_path / "with space #1?%20").is_dir()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("/data", "names no driver. Did you mean 'local:///data'?"),
        ("", "names no driver"),
        ("azur://k:s@bucket", "No storage driver 'azur'. Did you mean 'azure'?"),
        ("dummy://k:s@bucket", "No storage driver 'dummy'"),
        ("local://relative/path", "names no folder"),
        ("local:///", "names no folder"),
        ("local:///srv/../etc", "names no folder"),
        ("s3://k:s@", "names no container"),
        ("s3://bucket", "has no credentials: s3://KEY:SECRET@bucket"),
        ("s3://k@bucket", "has no credentials"),
        ("s3://k:s@bucket?endpont=http://x", "has no option 'endpont'. Did you mean 'endpoint'?"),
        ("s3://k:s@bucket?endpoint=127.0.0.1:9000", "Example: endpoint=http://127.0.0.1:9000"),
        ("s3://k:s@bucket?endpoint=http://host/path", "is no server"),
        ("s3://k:s@bucket?region=mars-north-1", "can't be opened: Invalid or unsupported region: mars-north-1"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(url: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        ObjectStore.open(url)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "k:s@" not in str(caught.value)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "storage.local", None)
    with pytest.raises(UsageError, match=r"needs a package that is missing.*: pip install fasteners"):
        ObjectStore.open("local:///tmp/x")
