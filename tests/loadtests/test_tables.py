"""`loadtests.tables`: tables behind markers are those of their files; the project's own pages are checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contract.command import Failure, UsageError
from contract.files import write_json
from loadtests.readers.registry import tables_of
from loadtests.tables import Tables, main, refresh
from tests.loadtests import made

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "peers.json", made.peers_file())
    write_json(tmp_path / "chaos-swap.json", made.swap_file())
    return tmp_path


def page(folder: Path, text: str) -> Path:
    (folder / "PAGE.md").write_text(text)
    return folder / "PAGE.md"


def test_a_table_is_written_behind_its_marker_and_all_else_stays(folder: Path) -> None:
    path = page(folder, "# A\n\n<!-- table: chaos-swap.json -->\n| old |\n|---|\n\nwords | with a bar\n")
    main(Tables(pages=(path,), root=folder))
    wanted = tables_of(folder / "chaos-swap.json")
    assert path.read_text() == f"# A\n\n<!-- table: chaos-swap.json -->\n{wanted}\n\nwords | with a bar\n"


def test_an_empty_marker_is_filled_and_a_second_run_changes_nothing(folder: Path) -> None:
    path = page(folder, "<!-- table: peers.json -->\n\n## Next\n")
    main(Tables(pages=(path,), root=folder))
    text = path.read_text()
    assert text == f"<!-- table: peers.json -->\n\n{tables_of(folder / 'peers.json')}\n\n## Next\n"
    assert refresh(text, folder) == (text, [], 1)


def test_one_part_of_a_file_is_written(folder: Path) -> None:
    changed, stale, markers = refresh("<!-- table: peers.json goals -->\n", folder)
    assert changed == f"<!-- table: peers.json goals -->\n{tables_of(folder / 'peers.json', 'goals')}\n"
    assert (stale, markers) == (["peers.json goals"], 1)


@pytest.mark.parametrize("change", [("100.5", "999.9"), ("| Fast", "| Quick")])
def test_check_finds_a_stale_table_and_changes_nothing(folder: Path, change: tuple[str, str]) -> None:
    good, _, _ = refresh("<!-- table: peers.json -->\n", folder)
    path = page(folder, good)
    main(Tables(pages=(path,), root=folder, check=True))
    path.write_text(good.replace(*change))
    with pytest.raises(Failure, match=r"stale tables; .*\n  .*PAGE\.md: peers\.json"):
        main(Tables(pages=(path,), root=folder, check=True))
    assert path.read_text() == good.replace(*change)


def test_a_row_too_many_is_stale(folder: Path) -> None:
    good, _, _ = refresh("<!-- table: chaos-swap.json -->\n", folder)
    _, stale, _ = refresh(good + "| requests failed | none at all |\n", folder)
    assert stale == ["chaos-swap.json"]


def test_a_marker_of_a_missing_or_unknown_file_is_an_error(folder: Path) -> None:
    for name, said in (("soak.json", "does not exist"), ("odd.json", "does not exist|no measurement")):
        with pytest.raises(UsageError, match=said):
            refresh(f"<!-- table: {name} -->\n", folder)


def test_no_page_and_an_unreadable_page_are_errors(folder: Path) -> None:
    with pytest.raises(UsageError, match="name at least one page"):
        Tables(pages=())
    with pytest.raises(UsageError, match=r"cannot read .*absent\.md"):
        main(Tables(pages=(folder / "absent.md",), root=folder))


def test_every_table_of_the_project_is_that_of_its_file() -> None:
    """By the command line: this is what CI and a reader run."""
    pages = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    command = [sys.executable, "-m", "loadtests.tables", *map(str, pages), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
