"""The page: self-contained, safe with any text in records, and usable in a browser if there is one."""

import copy
import dataclasses
import html.parser
import json
import re
import shlex
import shutil
import subprocess

import pytest

from qgoft import records
from qgoft.config.compose import compose_settings, model_files
from qgoft.config.keys import settings_in_key
from qgoft.config.settings import method_label, settings_from_record
from qgoft.records import RunDirectory
from qgoft.records.rerun import rerun_command
from qgoft.report import vega
from qgoft.report.page import Figure, Section, Summary, build_page
from qgoft.report.run_data import POINTS
from qgoft.report.table import Table
from tests.records.test_records import RECORD

EVIL = '</script><script>document.title="taken"</script><b>&"\' \u2028'


def record(number, **changes):
    made = copy.deepcopy(RECORD)
    made.update(key=f"{number:064x}", **changes)
    made["settings"] = {
        "model": {"init": "pretrained", "target_sets": {}},
        "method": {"penalty": 0.05, "targets": "all_linear"},
        "train": {"max_steps": 300, "epochs": None},
        "optim": {"lr": 0.01},
        "selection": "last",
        "results": {"root": None},
    }
    made["provenance"]["commit"] = "0123456789"
    made["provenance"]["hardware"] = {"device": "cpu", "processor": "x", "cores": 2, "threads": 1, "processes": 1}
    return made


@pytest.fixture
def page(tmp_path):
    runs = [record(i, seed=i, reason=EVIL, status="failed" if i == 2 else "done") for i in range(3)]
    directory = tmp_path / "run"
    directory.mkdir()
    lines = [{"step": i, "loss": 1 / i} for i in range(1, 101)] + [{"step": 100, "score": 80.0}, {"step": 50, "score": 70.0}]
    (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7')
    rows = [["goft", "9.5"], ["  published", "9.0"], ["lora", "80.1 ±0.3"], ["  published", "8.0"], ["qgoft", "-"], [f"x{EVIL}", "70"]]
    table = Table("t", f"scores {EVIL}", ["method", "CoLA"], rows, notes=[EVIL], highlights={(2, 1): "best"})
    units = Table("u", "sizes", ["", "#Param"], [["a", "8.03B"], ["b", "14.3M"], ["c", "72K"], ["d", "1,024"], ["e", "62e3de8d72"]])
    table.sources = {(0, 1): [runs[0]["key"]], (2, 1): [run["key"] for run in runs], (4, 1): ["f" * 64]}
    section = Section("a b", f"section {EVIL}", [table], text=EVIL)
    other = Section("other", "the same name", [units, units.__class__("t", "again", ["", "x"], [["goft", "1"]])])
    files = {run["key"]: RunDirectory(directory, run["key"]) for run in runs[:1]}
    return build_page("title", Summary(["lead"]), [section, other], runs, files, {RECORD["model"]: "the_model"})


class Reader(html.parser.HTMLParser):
    """Collect open elements, addresses and scripts, as a browser would."""

    EMPTY = ("meta", "input", "br", "link", "img")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.buttons, self.names = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.names.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "xlink:href")]
        if tag == "button":
            self.buttons.append(attributes)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_page_anchors_are_unique(page):
    """Sections of two protocols may have tables of one name; a filter applies to its own."""
    names = re.findall(r' id="([^"]+)"', page)
    assert len(set(names)) == len(names)
    assert set(re.findall(r'data-table="([^"]+)"', page)) <= set(names)
    assert page.count('aria-label="row"') == 2


def test_page_is_self_contained(page):
    reader = read(page)
    assert all(address.startswith("#") for address in reader.addresses)
    assert "default-src 'none'" in page
    assert not re.search(r"(url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\()", page)


def test_record_text_is_escaped_in_page(page):
    reader = read(page)
    assert reader.names.count("script") == 2
    assert "b" not in reader.names
    assert data_of(page)["runs"][2]["reason"] == EVIL


def test_page_cells_open_existing_runs(page):
    data, cells = data_of(page), [b for b in read(page).buttons if b.get("class") == "cell"]
    assert [cell["data-runs"] for cell in cells] == ["0", "0 1 2"]
    assert all(cell["aria-label"] for cell in cells)
    run = data["runs"][0]
    shared = data["shared"]
    (steps, losses), (places, scores) = shared[run["loss"]], shared[run["scores"]]
    assert len(losses) == len(shared[steps]) == POINTS
    assert (shared[steps][-1], losses[-1]) == (100, 0.01)
    assert (shared[places], scores) == ([100, 50], [80.0, 70.0])
    assert " ".join(shared[place] for place in run["command"]).startswith("python scripts/train.py protocol=")
    assert {**data["settings"][run["settings"]], **dict(shared[place] for place in run["own"])}["optim.lr"] == 0.01
    assert shared[run["origin"]]["commit"].startswith("0123456")
    assert {shared[name]: value for name, value in run["facts"]}["selection"] == "best_validation"


def test_page_command_composes_the_same_settings():
    """For a record of this version, the printed command gives the run that it belongs to."""
    for words in (
        ["task=glue/rte", "method=lora", "seed=3"],
        [
            "task=glue/cola",
            "method=qgoft",
            "method.penalty=0.5",
            "train.max_steps=7",
            "train.batch_size=8",
            "optim.head_lr=0.5",
            "train.mixed_precision=no",
        ],
        ["task=math/gsm8k", "method=lora", "++model.dtype=bfloat16", "++task.options.new_tokens=5"],
        ["task=instruct/vicuna", "method=lora", "++task.options.temperature=0.7", "train.eval_batch_size=64"],
        ["task=math/math", "method=psoft", "protocol=psoft_iclr26", "data.source=hub"],
    ):
        settings = compose_settings(words)
        made = {
            **RECORD, "protocol": settings.protocol, "suite": settings.task.suite, "task": settings.task.name, "method": settings.method.name,
            "variant": settings.method.variant, "seed": settings.seed, "model": settings.model.name, "settings": dataclasses.asdict(settings),
        }  # fmt: skip
        command = rerun_command(made, {"pocket-deberta": "pocket_deberta", "pocket-llama": "pocket_llama", "llama-3.2-3b": "llama32_3b"})
        again = compose_settings(shlex.split(command)[2:])
        assert settings_in_key(again) == settings_in_key(settings), method_label(made["method"], made["variant"])


def test_page_command_names_revisions():
    made = record(0)
    made["provenance"] = copy.deepcopy(RECORD["provenance"]) | {"hardware": made["provenance"]["hardware"]}
    assert "revision" not in rerun_command(made, {})
    made["provenance"]["model"].update(source="org/model", revision="0a1b")
    made["provenance"]["data"].update(source="org/one", revision="2c3d")
    assert {"model.revision=0a1b", "data.revision=2c3d"} <= set(rerun_command(made, {}).split())
    made["provenance"]["data"].update(source="org/one, org/two", revision="2c3d, 4e5f")
    assert "data.revision" not in rerun_command(made, {})


def test_committed_commands_compose(repository):
    """The last run of each suite under each protocol, and one on real images, whose data and steps are not the protocol's."""
    found = records.find_records(repository / "results" / "measured").records
    some = {(r["protocol"], r["suite"], r["settings"]["data"]["source"]): r for r in found}
    assert len(some) > 7
    assert ("pocket", "vtab", "hub") in some
    for made in some.values():
        again = compose_settings(rerun_command(made, model_files()).split()[2:])
        assert settings_in_key(again) == settings_in_key(settings_from_record(made)), made["task"]
        assert again.data.source == made["settings"]["data"]["source"]
        assert (again.data.root is None) == (made["settings"]["data"]["root"] is None)


CLICKS = """
<script>
addEventListener("load", () => {
  const told = {};
  const texts = () => [...document.querySelector("table").tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[0].textContent.trim().slice(0, 9));
  const [first, second] = document.querySelectorAll("th button");
  second.click(); told.down = texts(); told.sort = second.parentElement.getAttribute("aria-sort");
  second.click(); told.up = texts();
  const sizes = document.getElementById("table-other-u");
  sizes.querySelectorAll("th button")[1].click(); told.sizes = [...sizes.tBodies[0].rows].map((r) => r.cells[0].textContent).join("");
  const filter = document.querySelector("input.filter");
  filter.value = "lora, qgo"; filter.dispatchEvent(new Event("input")); told.filtered = texts();
  filter.value = ""; filter.dispatchEvent(new Event("input")); told.all = texts().length;
  const cells = document.querySelectorAll("button.cell");
  cells[0].click(); const dialog = document.querySelector("dialog");
  told.opened = dialog.open; told.heading = dialog.querySelector("h2").textContent; told.runs = dialog.querySelectorAll(".runs > details").length;
  told.curves = dialog.querySelectorAll("svg polyline").length; told.command = dialog.querySelector("pre").textContent;
  dialog.querySelector("button").click(); told.closed = !dialog.open;
  cells[1].click(); told.several = dialog.querySelectorAll(".runs > details").length; told.failed = dialog.textContent.includes('<b>&');
  dialog.querySelector("button").click();
  document.getElementById("theme").click(); told.theme = document.documentElement.dataset.theme;
  told.title = document.title; told.wide = document.documentElement.scrollWidth <= innerWidth;
  document.body.replaceChildren(document.createTextNode("TO" + "LD" + JSON.stringify(told) + "DLOT"));
});
</script></body>"""


def in_browser(page, script, tmp_path, width=390):
    """Return what a script tells after it has run on the page."""
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium on this machine (apt-get install chromium); the page's structure is tested without it")
    path = tmp_path / "page.html"
    path.write_text(script.join(page.rsplit("</body>", 1)))
    words = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},800",
    ]
    done = subprocess.run([*words, "--virtual-time-budget=8000", "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"TOLD(.*)DLOT", done.stdout, re.S)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(html.unescape(found[1]))


def test_page_in_a_browser(page, tmp_path):
    told = in_browser(page, CLICKS, tmp_path)
    assert told["down"][:3] == ["lora", "published", f"x{EVIL}"[:9]]
    assert told["down"][-1] == "qgoft", "what is no number goes last"
    assert told["up"][:2] == ["goft", "published"]
    assert told["sort"] == "descending"
    assert told["sizes"] == "abcde", "units count, and a commit is no number"
    assert told["filtered"] == ["lora", "published", "qgoft"]
    assert told["all"] == 6
    assert told["opened"]
    assert told["closed"]
    assert told["heading"] == "goft, CoLA: 9.5"
    assert (told["runs"], told["several"], told["curves"]) == (1, 3, 2)
    assert told["command"].startswith("python scripts/train.py")
    assert told["failed"], "the reason is shown as it is"
    assert told["theme"] in ("light", "dark")
    assert told["title"] == "title"
    assert told["wide"], "no sideways scrolling of the page on a phone"


PROTOCOLS = """
<script>
addEventListener("load", async () => {
  const told = {};
  const shown = () => [...document.querySelectorAll(".panel")].filter((panel) => !panel.hidden).map((panel) => panel.dataset.protocol ?? "");
  told.first = shown();
  document.querySelector('.switch button[data-protocol="small"]').click(); told.small = shown();
  document.querySelector('.protocols button[data-protocol="pocket"]').click(); told.pocket = shown();
  const search = document.getElementById("search");
  const entries = () => [...document.querySelectorAll("main .entry")].filter((entry) => !entry.hidden).map((entry) => entry.id);
  search.value = "rank"; search.dispatchEvent(new Event("input")); told.found = entries();
  search.value = "nowhere"; search.dispatchEvent(new Event("input")); told.nothing = !document.getElementById("nothing").hidden;
  search.value = ""; search.dispatchEvent(new Event("input")); told.all = entries().length;
  for (let i = 0; i < 60 && !document.querySelector(".chart .marks"); i++) await new Promise((done) => setTimeout(done, 100));
  const chart = document.querySelector(".chart");
  told.points = chart.querySelectorAll(".mark-symbol path").length; told.label = chart.textContent;
  told.drawn = chart.querySelectorAll('svg[role="img"]').length;
  document.body.replaceChildren(document.createTextNode("TO" + "LD" + JSON.stringify(told) + "DLOT"));
});
</script></body>"""


@pytest.fixture
def charted():
    values = [{"row": f"method {i}", "x": 10.0**i, "score": 50.0 + i} for i in range(1, 4)]
    spec = vega.points(values, "x", "score", ("parameters", "score"), ["row", "score"], log_x=True, front=values)
    one, two = (Table(name, name, ["method", "x"], [["lora@r8", "-1.5"]], has_methods=True) for name in ("one", "two"))
    sections = [
        Section("item-pocket", "item (pocket)", [one], entry="the item", protocol="pocket"),
        Section("item-small", "item (small)", [two], entry="the item", protocol="small"),
        Section("other", "other", [Table("three", "three", ["method", "x"], [["rank", "2"]])]),
    ]
    return build_page("title", Summary(["lead"], [Figure("a-figure", spec, "a figure")]), sections, [], {}, {})


def test_page_without_scripts_shows_everything(charted):
    """Both protocols, names of methods with their keys, and figures as they were drawn."""
    text = charted.partition("<main>")[2].partition("</main>")[0]
    assert text.count("<caption>") == 3
    assert " hidden" not in text.replace('id="nothing" hidden', "")
    assert 'title="lora@r8">LoRA r=8</td>' in text
    assert "−1.5" in text
    assert text.count('role="img" aria-label="a figure"') == 1


def test_page_protocols_search_and_charts(charted, tmp_path):
    told = in_browser(charted, PROTOCOLS, tmp_path, width=1200)
    assert told["first"] == ["pocket", ""]
    assert told["small"] == ["small", ""]
    assert told["pocket"] == ["pocket", ""]
    assert told["found"] == ["other"]
    assert told["nothing"]
    assert told["all"] == 3
    assert told["drawn"] == 0, "the chart replaces the drawn figure"
    assert told["points"] >= 3
    assert "parameters" in told["label"]
