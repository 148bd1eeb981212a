"""The page at `/`, in a real browser: what a user types, picks, runs, loads and reads.

Screenshots are kept in target/page.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from exlora import Engine
from support import browser as browsers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.missing() is not None, reason=f"browser tests are left out: {browsers.missing()}"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]

SCREENSHOTS = Path(__file__).parents[2] / "target/page"
MODEL = "quill-4m-gptq-4bit-g128-sym"
HOSTILE_NAME = "<img src=x onerror=document.title='taken'>"
ADMIN_KEY = "admin-key-of-the-tests"
PROMPT = "The truth is"

# Prompts that break careless quoting, in a shell or in Python.
HOSTILE_PROMPTS = [
    "it's \"quoted\" '''thrice''' `here` $HOME ${x} $(id) !!",
    'back\\slash \\n \\\\ \\" \\',
    "two\nlines\r\nand\ttab\x00\x1b\x7f",
    "é 漢字 🦙 \u2028 \u202e %s {x} <script>",
    "'; touch /tmp/never #",
    "-d @/etc/passwd",
]


@contextmanager
def exlora_serve(fixtures, *options):
    """The command `exlora serve`, while it runs; its address."""
    adapters = fixtures / "adapters"
    command = [sys.executable, "-m", "exlora", "serve", "--json", "-m", fixtures / MODEL, "--port", "0"]
    command += [
        "--adapter",
        f"sqlite={adapters / 'sqlite-rslora-r16'}",
        "--adapter",
        f"jargon={adapters / 'jargon-lora-r8'}",
    ]
    environment = {**os.environ, "EXLORA_ADMIN_KEY": ADMIN_KEY}
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, env=environment, text=True) as server:
        try:
            yield json.loads(server.stdout.readline())["url"].rstrip("/") + "/"
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


@pytest.fixture(scope="module")
def url(fixtures):
    """A server with two adapters, and a folder of others."""
    with exlora_serve(fixtures, "--adapters-dir", fixtures / "adapters") as url:
        yield url


@pytest.fixture(scope="module")
def engine(fixtures):
    """What the server's answers are compared with."""
    adapters = fixtures / "adapters"
    return Engine(
        fixtures / MODEL,
        adapters={"sqlite": adapters / "sqlite-rslora-r16", "jargon": adapters / "jargon-lora-r8"},
    )


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browsers.headless_chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium, url):
    """The browser; a test fails if the page breaks its own policy or throws."""
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []


def get(url, path):
    """The JSON of a route."""
    with urllib.request.urlopen(url + path, timeout=30) as response:
        return json.load(response)


def unload(url, name):
    """Unloads an adapter without the page."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
    body = json.dumps({"lora_name": name}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}v1/unload_lora_adapter", body, headers), timeout=30).close()


def give_admin_key(browser):
    """Types the admin key, which `/metrics` asks for too."""
    browser.find("#load summary").click()
    browser.find("#admin-key").send_keys(ADMIN_KEY + "\t")
    browser.find("#load summary").click()


def row(browser, name):
    """The table's row of an adapter."""

    def found():
        return next((tbody for tbody in browser.all("#adapters tbody") if name_of(tbody) == name), None)

    return browser.wait(found, f"a row for {name}")


def name_of(tbody):
    return tbody.find_element("css selector", ".name").text


def pick(browser, name, weight=None):
    """Picks an adapter with the mouse."""
    found = row(browser, name)
    found.find_element("css selector", "input[type=checkbox]").click()
    if weight is not None:
        number = found.find_element("css selector", "input[type=number]")
        number.clear()
        number.send_keys(str(weight))


def columns(browser):
    """Title and text of each column."""
    return dict(
        browser.run(
            "return [...document.querySelectorAll('.column')].map((column) =>"
            "  [column.querySelector('h3').textContent, column.querySelector('.text').textContent])"
        )
    )


def states(browser):
    return browser.run("return [...document.querySelectorAll('.column')].map((column) => column.dataset.state)")


def run(browser):
    """Runs the columns, and waits until all are done."""
    browser.find("#run").click()
    browser.wait(lambda: browser.all("#stop:disabled"), "the end of the run")
    return columns(browser)


def says(browser, selector, text):
    """Waits until an element's text contains a text."""
    browser.wait(lambda: text in browser.find(selector).text, f"{selector} says {text!r}")


def test_columns_are_what_the_engine_generates_and_show_how_they_differ(browser, url, engine):
    browser.open(url)
    says(browser, "#model", MODEL)
    says(browser, "#throughput-status", "once the admin key is given")
    give_admin_key(browser)
    browser.find("#prompt").send_keys(PROMPT)
    max_tokens = browser.find("[name=max_tokens]")
    max_tokens.clear()
    max_tokens.send_keys("200")
    pick(browser, "sqlite")
    pick(browser, "jargon", 0.5)

    mixtures = {
        "Base": None,
        "sqlite": "sqlite",
        "jargon*0.5": {"jargon": 0.5},
        "sqlite + jargon*0.5": {"sqlite": 1.0, "jargon": 0.5},
    }
    generated = {
        title: engine.generate(PROMPT, adapter=mixture, max_new_tokens=200) for title, mixture in mixtures.items()
    }
    expected = {title: completion.text for title, completion in generated.items()}
    assert run(browser) == expected
    assert len(set(expected.values())) > 2
    assert states(browser) == ["done"] * 4
    for title, column in zip(mixtures, browser.all(".column"), strict=True):
        first, rate, tokens, end = [figure.text for figure in column.find_elements("css selector", "dd")]
        assert first.endswith(" ms")
        assert float(rate) > 0
        assert (tokens, end) == (str(len(generated[title].token_ids)), generated[title].finish_reason)

    assert not browser.all("mark")
    browser.find("[name=difference]").click()
    assert columns(browser) == expected  # marking changes no text
    for column in browser.all(".column")[1:]:
        marked = [mark.text for mark in column.find_elements("css selector", "mark")]
        assert marked
        assert "words differ from the base" in column.find_element("css selector", ".note").text
    assert not browser.all(".column:first-child mark")

    says(browser, "#legend", "sqlite")
    browser.screenshot(SCREENSHOTS / "page.png")


def test_what_was_picked_is_in_the_address_and_the_keys_are_not(browser, url):
    browser.open(url)
    browser.find("#prompt").send_keys("a & b = #1\n%20 é")
    pick(browser, "jargon", 0.25)
    browser.find("#load summary").click()
    browser.find("#admin-key").send_keys(ADMIN_KEY)
    browser.find("#load-name").send_keys("nothing")
    browser.find("#load-form button").click()
    says(browser, "#adapters-status", "nothing")

    address = browser.driver.current_url
    assert address.startswith(url + "#")
    assert ADMIN_KEY not in address
    assert browser.run("return JSON.stringify(localStorage)") == "{}"
    browser.open(address)
    assert browser.find("#prompt").get_attribute("value") == "a & b = #1\n%20 é"
    assert list(columns(browser)) == ["Base", "jargon*0.25"]
    assert row(browser, "jargon").find_element("css selector", "input[type=range]").get_attribute("value") == "0.25"


def test_an_adapter_is_loaded_used_and_unloaded(browser, url):
    browser.open(url)
    browser.find("#load summary").click()
    browser.find("#load-name").send_keys("devil")
    browser.find("#load-path").send_keys("devil-dora-r8")
    browser.find("#load-form button").click()
    says(browser, "#adapters-status", "take the admin key")
    assert browser.driver.switch_to.active_element.get_attribute("id") == "admin-key"

    browser.type(ADMIN_KEY, "\n")
    says(browser, "#adapters-status", "Loaded devil.")
    resident = {adapter["name"]: adapter for adapter in get(url, "v1/adapters")["data"]}
    assert resident["devil"]["rank"] == 8
    cells = [cell.text for cell in row(browser, "devil").find_elements("css selector", "td.number")]
    assert cells[0] == "8"
    assert cells[1].endswith("iB")

    browser.find("#prompt").send_keys("LOVER, n.")
    pick(browser, "devil")
    texts = run(browser)
    assert texts["devil"] != texts["Base"]

    row(browser, "devil").find_element("css selector", "button").click()
    says(browser, "#adapters-status", "Unloaded devil.")
    assert "devil" not in {item["name"] for item in get(url, "v1/adapters")["data"] if item["resident"]}
    run(browser)
    assert states(browser) == ["done", "failed"]
    assert "devil" in browser.find(".column[data-state=failed] .note").text


def test_text_from_elsewhere_is_never_markup(browser, url):
    """Names of adapters and completions are shown as they are, whatever they contain."""
    browser.open(url)
    browser.find("#load summary").click()
    browser.find("#admin-key").send_keys(ADMIN_KEY)
    browser.find("#load-name").send_keys(HOSTILE_NAME)
    browser.find("#load-path").send_keys("jargon-lora-r8")
    browser.find("#load-form button").click()
    says(browser, "#adapters-status", f"Loaded {HOSTILE_NAME}.")
    pick(browser, HOSTILE_NAME)
    browser.find("#prompt").send_keys("<script>document.title='taken'</script>")
    completion = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    event = json.dumps({"choices": [{"index": 0, "text": completion, "finish_reason": "stop"}]})
    browser.run(
        "const real = window.fetch;"
        "window.fetch = (url, options) => options.method === 'POST'"
        "  ? Promise.resolve(new Response(args[0], { status: 200 })) : real(url, options);",
        f"data: {event}\n\ndata: [DONE]\n\n",
    )
    browser.find("[name=difference]").click()
    assert run(browser) == {"Base": completion, HOSTILE_NAME: completion}
    assert not browser.all("main img, main b, main script")
    assert "taken" not in browser.driver.title
    browser.all(".column button")[1].click()
    assert "<img src=x onerror=" in browser.find("dialog code").text
    assert not browser.all("dialog img, dialog script")
    unload(url, HOSTILE_NAME)


def test_everything_works_from_the_keyboard(browser, url):
    from selenium.webdriver.common.keys import Keys

    browser.open(url)
    row(browser, "sqlite")

    def focused():
        return browser.driver.switch_to.active_element

    def tab_to(selector):
        for _ in range(60):
            browser.type(Keys.TAB)
            if browser.run("return document.activeElement.matches(args[0])", selector):
                outline = focused().value_of_css_property("outline-style")
                beside = browser.run(
                    "const next = document.activeElement.nextElementSibling;"
                    "return next ? getComputedStyle(next).outlineStyle : ''"
                )
                assert "solid" in (outline, beside), f"{selector} shows no focus"
                return
        raise AssertionError(f"{selector} is not reached with the Tab key")

    tab_to("#prompt")
    browser.type(PROMPT)
    tab_to("[name=max_tokens]")
    browser.chord(Keys.CONTROL, "a")
    browser.type("900")
    tab_to("#adapters tbody:last-of-type input[type=checkbox]")
    browser.type(Keys.SPACE)
    tab_to("#adapters tbody:last-of-type input[type=range]")
    browser.type(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    name = name_of(browser.all("#adapters tbody")[-1])
    assert list(columns(browser)) == ["Base", f"{name}*0.9"]

    browser.chord(Keys.CONTROL, Keys.ENTER)
    browser.wait(lambda: "running" in states(browser), "the run")
    browser.type(Keys.ESCAPE)
    says(browser, "#status", "Stopped after")
    assert states(browser) == ["stopped", "stopped"]
    browser.wait(lambda: all(adapter["leases"] == 0 for adapter in get(url, "v1/adapters")["data"]), "no lease")

    tab_to(".column button")
    browser.type(Keys.ENTER)
    assert browser.find("dialog").get_property("open")
    browser.type(Keys.ESCAPE)
    assert not browser.find("dialog").get_property("open")


def test_every_control_has_a_name_for_a_screen_reader(browser, url):
    browser.open(f"{url}#mode=chat&prompt=x&adapter=sqlite*1&adapter=jargon*1")
    row(browser, "sqlite")
    for details in browser.all("summary"):
        details.click()
    roles = {
        "button",
        "textbox",
        "searchbox",
        "checkbox",
        "radio",
        "slider",
        "spinbutton",
        "combobox",
        "article",
        "table",
    }
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(controls) > 25
    assert [node for node in controls if not node["name"]["value"].strip()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "width"), [("wide", 1280), ("phone", 390)])
def test_it_fits_its_window_and_follows_the_color_scheme(browser, url, device, width, scheme):
    browser.open(f"{url}#prompt=The+truth+is&max_tokens=40&adapter=sqlite*1&adapter=jargon*0.5&difference=1", width)
    browser.prefer(scheme)
    row(browser, "sqlite")
    give_admin_key(browser)
    run(browser)
    says(browser, "#legend", "sqlite")
    assert browser.run("return document.documentElement.scrollWidth") == width
    tops = {column.rect["y"] for column in browser.all(".column")}
    assert len(tops) == (1 if device == "wide" else 4)

    def brightness(element):
        color = browser.find(element).value_of_css_property("background-color")
        return sum(float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])

    assert (brightness("body") > 600) == (scheme == "light")
    assert (brightness(".column") > 600) == (scheme == "light")
    browser.screenshot(SCREENSHOTS / f"{device}-{scheme}.png")

    other = "dark" if scheme == "light" else "light"
    browser.find(f"#theme option[value={other}]").click()
    assert (brightness("body") > 600) == (other == "light")


def test_a_server_with_a_key_is_used_once_the_key_is_typed(chromium, fixtures):
    with exlora_serve(fixtures, "--api-key", "key-of-the-tests") as url:
        chromium.open(url + "#prompt=Once&max_tokens=4")
        says(chromium, "#api-key-form", "asks for an API key")
        chromium.find("#api-key").send_keys("another-key\n")
        says(chromium, "#connection", "does not know the one given")
        chromium.find("#api-key").clear()
        chromium.find("#api-key").send_keys("key-of-the-tests\n")
        says(chromium, "#model", MODEL)
        assert run(chromium)["Base"]
        assert not chromium.find("#api-key-form").is_displayed()
        assert "key-of-the-tests" not in chromium.driver.current_url
        chromium.find(".column button").click()
        assert "$EXLORA_API_KEY" in chromium.find("dialog code").text
    says(chromium, "#connection", "does not answer")
    assert chromium.complaints() == []


def test_the_page_asks_nothing_of_other_servers(browser, url):
    browser.open(f"{url}#prompt=Once&max_tokens=4")
    row(browser, "sqlite")
    run(browser)
    asked = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(asked) > 15
    assert [name for name in asked if not name.startswith(url)] == []


def module(browser, url, script, *arguments):
    """The value of a script after the page's modules that it names were imported as objects."""
    names = ["event_stream", "word_diff", "settings", "request", "code_samples", "prometheus", "throughput", "elements"]
    imports = "".join(f"const {name} = await import('{url}page/{name}.js');" for name in names)
    return browser.run(imports + script, *arguments)


@pytest.fixture
def loaded(browser, url):
    """A function that runs a script over the page's modules."""
    browser.open(url)
    return lambda script, *arguments: module(browser, url, script, *arguments)


def test_events_are_found_however_their_bytes_arrive(loaded):
    text = ": comment\r\n\r\ndata: one\r\n\r\nevent: x\ndata:two\ndata: lines\n\ndata: \n\ndata: cut"
    script = """
        const parser = new event_stream.EventParser();
        const found = [];
        for (let i = 0; i < args[0].length; i += args[1]) found.push(...parser.push(args[0].slice(i, i + args[1])));
        return found;
    """
    for size in (1, 2, 3, 7, 1000):
        assert loaded(script, text, size) == ["one", "two\nlines", ""]


@pytest.mark.parametrize(
    ("base", "text", "marked", "differing", "words"),
    [
        ("the cat sat", "the cat sat", "the cat sat", 0, 3),
        ("the cat sat", "the dog sat", "the [dog] sat", 1, 3),
        ("a b c d", "a x y d", "a [x y] d", 2, 4),
        ("", " one two ", " [one two] ", 2, 2),
        ("one two", "", "", 0, 0),
        ("a b a b c", "b a b c x", "b a b c [x]", 1, 5),
        ("我们去学校", "我们在学校", "我们[在]学校", 1, 5),
    ],
)
def test_words_that_differ_are_found(loaded, base, text, marked, differing, words):
    found = loaded("return word_diff.compareWords(...args)", base, text)
    pieces = [f"[{piece['text']}]" if piece["differs"] else piece["text"] for piece in found["pieces"]]
    assert ("".join(pieces), found["differing"], found["words"]) == (marked, differing, words)


def test_long_texts_are_compared_where_they_differ_or_not_at_all(loaded):
    script = "return word_diff.compareWords(args[0], args[1])?.differing ?? null"
    common = "word " * 20_000
    assert loaded(script, common + "one", common + "two") == 1
    assert loaded(script, "one " * 3000, "two " * 3000) is None


def test_settings_survive_the_address(loaded):
    settings = {
        "mode": "chat",
        "system": "be brief\n",
        "prompt": "a & b = #1 + 2% é 漢 🦙",
        "sampling": {
            "temperature": "0.7",
            "max_tokens": "",
            "seed": "18446744073709551615",
            "top_p": "0.9",
            "top_k": "40",
            "min_p": "0.05",
            "repetition_penalty": "1.1",
            "stop": "\n\n###",
        },
        "adapters": [{"name": "b*2", "weight": -0.5}, {"name": "10", "weight": 1}, {"name": "9&=#", "weight": 2}],
        "columns": {"base": False, "single": True, "mixture": False},
        "difference": True,
    }
    round_trip = "return settings.fromFragment('#' + settings.toFragment(args[0]))"
    assert loaded(round_trip, settings) == settings
    assert loaded("return settings.toFragment(settings.defaultSettings())") == ""
    assert loaded("return settings.fromFragment('#adapter=*1&adapter=x&adapter=y*z&hide=all').adapters") == []


def test_a_request_keeps_the_order_of_the_mixture_and_every_digit(loaded):
    script = """
        const now = settings.defaultSettings();
        Object.assign(now.sampling, { seed: "18446744073709551615", temperature: "0.70", stop: "a\\n\\nb" });
        return request.jsonText(request.requestOf(now, args[0], "base").body);
    """
    adapters = [{"name": "10", "weight": 0.5}, {"name": "9", "weight": 0.25}]
    text = loaded(script, adapters)
    assert '"adapters": {"10": 0.5, "9": 0.25}' in text
    assert '"seed": 18446744073709551615' in text
    body = json.loads(text)
    assert (body["model"], body["temperature"], body["stop"]) == ("base", 0.7, ["a", "b"])
    assert json.loads(loaded(script, [{"name": "10", "weight": 1}]))["model"] == "10"


@pytest.mark.parametrize("mode", ["plain", "chat"])
@pytest.mark.parametrize("prompt", HOSTILE_PROMPTS)
def test_code_says_what_the_page_sends_whatever_the_prompt(loaded, tmp_path, prompt, mode):
    """Each sample runs, with a stand-in for what it calls that writes down what it was given."""
    found = loaded(
        """
        const now = { ...settings.defaultSettings(), mode: args[0], prompt: args[1], system: args[1] };
        now.sampling.stop = args[1];
        const asked = request.requestOf(now, args[2], "the base");
        const paths = new Map(args[2].map(({ name }) => [name, `/of/${name}`]));
        return {
          body: request.jsonText(asked.body),
          curl: code_samples.curlSample(asked, "http://127.0.0.1:1/", true),
          openai: code_samples.openaiSample(asked, "http://127.0.0.1:1/", true),
          exlora: code_samples.exloraSample(asked, args[2], args[1], paths),
        };
        """,
        mode,
        prompt,
        adapters := [{"name": "it's $HOME", "weight": 0.5}, {"name": '7"\\', "weight": 1}],
    )
    body = json.loads(found["body"])
    assert body["messages"][1]["content"] == prompt if mode == "chat" else body["prompt"] == prompt
    route = "chat/completions" if mode == "chat" else "completions"

    stand_in = tmp_path / "curl"
    stand_in.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "EXLORA_API_KEY": "k"}
    shell = subprocess.run(["sh"], input=found["curl"], env=environment, capture_output=True, text=True, check=True)
    given = json.loads(shell.stdout)
    assert given[0] == f"http://127.0.0.1:1/v1/{route}"
    assert given[1:5] == ["-H", "Authorization: Bearer k", "-H", "Content-Type: application/json"]
    assert json.loads(given[6]) == body

    calls = run_python(found["openai"])
    assert calls[0] == ("OpenAI", (), {"base_url": "http://127.0.0.1:1/v1", "api_key": "k"})
    name, arguments, keywords = calls[1]
    assert (name, arguments) == ("chat.completions.create" if mode == "chat" else "completions.create", ())
    assert {**keywords.pop("extra_body"), **keywords} == body

    calls = run_python(found["exlora"])
    weights = {adapter["name"]: adapter["weight"] for adapter in adapters}
    assert calls[0] == ("Engine", (prompt,), {"adapters": {name: f"/of/{name}" for name in weights}})
    name, arguments, keywords = calls[1]
    assert (name, arguments) == ("generate", (body["messages"] if mode == "chat" else prompt,))
    assert keywords["adapter"] == weights
    assert list(keywords["adapter"]) == list(weights)
    assert keywords["stop"] == body["stop"]
    assert keywords["max_new_tokens"] == 128


def run_python(code):
    """Runs a sample; the calls of what it imports, with their arguments."""
    calls = []

    class Recorder:
        def __init__(self, path=""):
            self.path = path

        def __getattr__(self, name):
            return Recorder(f"{self.path}.{name}".lstrip("."))

        def __getitem__(self, _):
            return Recorder()

        def __call__(self, *arguments, **keywords):
            calls.append((self.path, arguments, keywords))
            return Recorder()

    stand_ins = {"openai": {"OpenAI": Recorder("OpenAI")}, "exlora": {"Engine": Recorder("Engine")}}

    def stand_in(name, *_):
        if name == "os":
            return type("os", (), {"environ": {"EXLORA_API_KEY": "k"}})
        return type(name, (), stand_ins[name])

    exec(code, {"__builtins__": {"__import__": stand_in, "print": lambda *_: None}})
    return calls


def test_metrics_are_read_and_become_rates(loaded):
    text = (
        'a_total{adapter="x \\"q\\" \\\\ {y}"} 5\na_total_more{adapter="z"} 1\n# HELP a_total x\na_total 7.5e1 1700\n'
    )
    script = "return prometheus.samplesOf(args[0], 'a_total').map(({ labels, value }) => [[...labels], value])"
    assert loaded(script, text) == [[[["adapter", 'x "q" \\ {y}']], 5], [[], 75]]

    script = """
        const history = new throughput.ThroughputHistory(10);
        for (const [seconds, tokens] of args[0]) history.add(seconds, new Map(Object.entries(tokens)));
        return [...history.series()];
    """
    readings = [[0, {"x": 0}], [2, {"x": 10, "y": 0}], [4, {"x": 10, "y": 6}], [6, {"x": 3, "y": 6}]]
    assert loaded(script, readings) == [
        ["x", [{"seconds": 2, "rate": 5}, {"seconds": 4, "rate": 0}, {"seconds": 6, "rate": 0}]],
        ["y", [{"seconds": 2, "rate": 0}, {"seconds": 4, "rate": 3}, {"seconds": 6, "rate": 0}]],
    ]
    assert loaded(script, [*readings, [20, {}], [40, {}]]) == []

    script = """
        const series = new Map(args[0].map((rate, i) => [`a${i}`, [{ seconds: 1, rate }]]));
        return [...throughput.largestSeries(series, 3)].map(([name, points]) => [name, points[0].rate]);
    """
    assert loaded(script, [1, 5, 2, 4]) == [["a1", 5], ["a3", 4], ["2 others", 3]]
    assert loaded("return [0, 0.3, 1, 7, 20, 21].map(throughput.niceCeiling)") == [1, 0.5, 1, 10, 20, 50]


def test_sizes_have_three_digits(loaded):
    sizes = [0, 999, 1000, 1536, 102_400, 8 << 30]
    assert loaded("return args[0].map(elements.bytesText)", sizes) == [
        "0 B",
        "999 B",
        "0.98 KiB",
        "1.5 KiB",
        "100 KiB",
        "8.0 GiB",
    ]
