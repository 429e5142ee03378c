"""What of the cluster's test needs no cluster: archives of images, what counts as lost or repeated, the table."""

import hashlib
import json
import tarfile
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.k3s import __main__ as program
from tests.k3s import calls, images
from tests.k3s.host import HostError, SetupError
from tests.k3s.table import Row, Table


def test_an_archive_of_a_program_holds_what_its_digests_say(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    with tarfile.open(images.of_program(program, tmp_path / "program.tar")) as archive:

        def blob(described: dict[str, Any]) -> bytes:
            file = archive.extractfile(f"blobs/sha256/{described['digest'].removeprefix('sha256:')}")
            assert file is not None
            content = file.read()
            assert hashlib.sha256(content).hexdigest() == described["digest"].removeprefix("sha256:")
            assert len(content) == described["size"]
            return content

        index = archive.extractfile("index.json")
        assert index is not None
        manifest = json.loads(blob(json.load(index)["manifests"][0]))
        config = json.loads(blob(manifest["config"]))
        (layer,) = manifest["layers"]
        blob(layer)
    assert config["config"]["Entrypoint"] == ["/program"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]


class Recorded:
    """A release whose database says that every call of a step was finished at 10."""

    def fetch(self, query: str, *arguments: object) -> list[dict[str, object]]:
        end = datetime.fromtimestamp(10, UTC)
        return [{"step_id": "id", "position": name, "finished_at": end} for name in calls.EXPECTED["careful"].split()]


def made(*again: tuple[str, float], without: str = "") -> list[calls.Call]:
    times = [(name, 9.0) for name in calls.EXPECTED["careful"].split() if name != without]
    return [calls.Call(at, "tag", name, "begun", "pod") for name, at in (*times, *again)]


@pytest.mark.parametrize(
    ("log", "fault", "cut"),
    [
        (made(), "", 0),
        (made(("careful/1/0", 9.5)), "", 1),
        (made(("careful/1/0", 11)), "tag: careful/1/0 was repeated 1 times", 0),
        (made(without="careful/2"), "tag: calls ['careful/2'] are missing or too many", 0),
    ],
)
def test_a_call_that_began_again_was_cut_or_repeated(log: list[calls.Call], fault: str, cut: int) -> None:
    assert calls.wrong(Recorded(), log, {"id": "tag"}, "careful") == (fault, cut)  # type: ignore[arg-type]


def test_a_line_that_is_being_written_is_no_call_yet(tmp_path: Path) -> None:
    line = '{"at": 1, "tag": "t", "call": "c", "moment": "begun", "pod": "p"}'
    path = tmp_path / "calls.jsonl"
    assert calls.read(path) == []
    path.write_text(f"{line}\n{line[:20]}")
    assert calls.read(path) == [calls.Call(1, "t", "c", "begun", "p")]


def test_a_table_without_rows_has_failed() -> None:
    table = Table("k3s")
    assert table.failed
    table.add(Row("loss of a node", untried="there is one"))
    assert table.failed
    table.add(Row("up", "1 s"))
    assert not table.failed
    table.add(Row("installed", "", "no pods"))
    assert table.failed
    rows = ["| loss of a node |  | not tried: there is one |", "| up | 1 s | ok |", "| installed |  | no pods |"]
    assert str(table).splitlines()[2:] == rows


@pytest.mark.parametrize(("error", "code", "said"), [(HostError, 0, "skipped: x\n"), (SetupError, 1, "failed: x\n")])
def test_what_the_host_cannot_is_skipped_and_what_cannot_be_built_has_failed(
    error: type[Exception], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> NoReturn:
        raise error("x")

    monkeypatch.setattr(program, "prepare", refuse)
    assert program.main(Namespace(helm=3)) == code
    assert capsys.readouterr().out == said


def test_an_image_that_cannot_be_built_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIMESTEP_K3S_IMAGE", str(tmp_path / "none.tar"))
    with pytest.raises(SetupError, match="which is no file"):
        images.service(tmp_path)
    with pytest.raises(SetupError, match=r"^false now: "):
        images._must("false", "now")
