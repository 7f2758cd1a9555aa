"""The timeline page as a person meets it: in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from iotsplit.cli import main
from iotsplit.tape import files
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import Header, Record
from tests.browser import Page, find_browser, open_browser

pytestmark = [pytest.mark.slow]

GOLDEN = Path(__file__).parents[1] / "tapes"
# Number of pixels of a lane that are coloured as bars are, not grey as lines and rounds are.
COLOURED = """
(lane => {
  const at = pen.getImageData(Math.ceil(LEFT), TOP + LANE * lane + 1, Math.floor(width()), LANE - 2).data;
  let found = 0;
  for (let n = 0; n < at.length; n += 4)
    found += Math.max(at[n], at[n + 1], at[n + 2]) - Math.min(at[n], at[n + 1], at[n + 2]) > 40;
  return found;
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    with open_browser(program, tmp_path_factory.mktemp("browser")) as page:
        yield page


def drawn(tape: Path, page: Page, directory: Path) -> Path:
    """Have a tape drawn and look at it."""
    made = directory / "page.html"
    assert main(["inspect", str(tape), f"--timeline={made}"]) == 0
    page.complaints.clear()
    page.requests.clear()
    page.open(made.as_uri())
    return made


def number(page: Page, name: str) -> float:
    return float(page.evaluate(f"document.body.dataset.{name}"))


def test_each_agent_has_a_lane_with_its_bars(browser: Page, tmp_path: Path) -> None:
    made = drawn(GOLDEN / "fail-over.tape", browser, tmp_path)
    # One file: it asks for nothing else, and nothing in it fails.
    assert browser.requests == [made.as_uri()]
    assert browser.complaints == []
    assert browser.evaluate("data.lanes") == ["cloud", "edge-1", "edge-2", "a", "b", "others"]
    assert number(browser, "drawn") == len(list(files.records(GOLDEN / "fail-over.tape")))
    for lane in range(5):
        assert browser.evaluate(f"{COLOURED}({lane})") > 50
    assert browser.evaluate(f"{COLOURED.replace('LANE * lane', 'LANE * 9')}(0)") == 0
    legend = browser.evaluate("[...document.querySelectorAll('.key')].map(each => each.textContent)")
    assert set(legend) >= {"activation", "gradient", "update", "checkpoint", "adapter", "assign", "want"}
    assert browser.evaluate("new Set(colours).size") == len(legend)
    assert browser.evaluate("data.rounds.map(each => each[0])") == [1]
    assert browser.evaluate("data.marks.map(each => each[1])") == ["edge_lost edge-1", "session_moved a"]
    assert browser.evaluate("document.title") == str(GOLDEN / "fail-over.tape")


def test_wheel_drag_and_buttons_change_what_is_seen(browser: Page, tmp_path: Path) -> None:
    drawn(GOLDEN / "quiet.tape", browser, tmp_path)
    left, top = browser.evaluate("(r => [r.left, r.top])(canvas.getBoundingClientRect())")
    all_bars, end = number(browser, "drawn"), number(browser, "to")
    middle = (left + 700, top + 60)
    for _ in range(3):
        browser.mouse("mouseWheel", *middle, deltaX=0, deltaY=-400)
    near = (number(browser, "from"), number(browser, "to"))
    assert 0 < near[0] < near[1] < end
    assert 0 < number(browser, "drawn") < all_bars
    browser.mouse("mousePressed", *middle, button="left", buttons=1)
    browser.mouse("mouseMoved", middle[0] - 200, middle[1], button="left", buttons=1)
    browser.mouse("mouseReleased", middle[0] - 200, middle[1], button="left")
    moved = (number(browser, "from"), number(browser, "to"))
    assert moved[0] > near[0]
    assert moved[1] - moved[0] == pytest.approx(near[1] - near[0])
    browser.evaluate("document.getElementById('out').click()")
    assert number(browser, "to") - number(browser, "from") == pytest.approx(2 * (moved[1] - moved[0]))
    browser.evaluate("document.getElementById('all').click()")
    assert (number(browser, "from"), number(browser, "to"), number(browser, "drawn")) == (0, end, all_bars)
    browser.evaluate("document.querySelector('.key').click()")
    assert number(browser, "drawn") < all_bars
    assert browser.complaints == []


def test_the_mouse_is_told_what_a_bar_is(browser: Page, tmp_path: Path) -> None:
    drawn(GOLDEN / "quiet.tape", browser, tmp_path)
    where = """(bar => {
        const box = canvas.getBoundingClientRect(), [above, high] = top_of(bar[2], rows[bar[3]]);
        return [box.left + x(bar[0]) + 1, box.top + above + high / 2]; })
        (data.bars.find(bar => data.kinds[bar[3]] === "gradient" && data.lanes[bar[2]] === "cloud"))"""
    browser.mouse("mouseMoved", *browser.evaluate(where))
    told = browser.evaluate("document.getElementById('tip').textContent").splitlines()
    assert told[0] == "cloud: gradient"
    assert "bytes" in told[2]
    assert told[3].startswith("run1-t1-a to edge-1, step 0")


def test_what_stands_in_topics_is_only_text(browser: Page, tmp_path: Path) -> None:
    evil = "</script><script>console.log('ran')</script><img src=x onerror=console.log(1)>"
    with TapeWriter(tmp_path / "evil.tape", Header()) as writer:
        writer.add(Record(1, 1, f"iotsplit/f/state/{evil}", b"{}"))
        writer.add(Record(5, 5, evil, b"{}"))
    made = drawn(tmp_path / "evil.tape", browser, tmp_path)
    assert number(browser, "drawn") == 2
    assert browser.requests == [made.as_uri()]
    assert browser.complaints == []
