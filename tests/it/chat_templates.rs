//! Hostile chat templates and messages end in a prompt or in `chat_template_failed`: never in a crash, within seconds, and
//! in memory in proportion to the messages.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use exlora::{ChatMessage, ChatOptions, ErrorCode, Tokenizer};
use serde_json::{Map, Value, json};
use support::allocator::with_peak;

/// Far more than any of these takes, on a machine that does other things too.
const MOST_TIME: Duration = Duration::from_secs(40);
const MOST_MEMORY: usize = 400 << 20;

fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().expect("a folder");
    let json = json!({"version": "1.0", "added_tokens": [],
                      "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}});
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).expect("writes");
    Tokenizer::open(dir.path()).expect("right files").expect("a tokenizer")
}

/// Renders a source within bounds; the prompt, or `None` for an error.
fn bounded(tokenizer: &Tokenizer, source: &str, messages: &[ChatMessage]) -> Option<String> {
    let name = &source[..source.floor_char_boundary(120)];
    let options = ChatOptions { chat_template: Some(source.to_owned()), ..ChatOptions::default() };
    let start = Instant::now();
    let (result, peak) = with_peak(|| tokenizer.apply_chat_template(messages, &options));
    assert!(start.elapsed() < MOST_TIME, "{name}: {:?}", start.elapsed());
    assert!(peak < MOST_MEMORY + 20 * source.len(), "{name}: {} MiB", peak >> 20);
    match result {
        Ok(prompt) => Some(prompt),
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::ChatTemplateFailed, "{name}");
            assert!(!error.message().contains("panic"), "{name}: {error}");
            assert!(error.to_string().len() < 4000, "{name}: an error of {} bytes", error.to_string().len());
            None
        }
    }
}

fn user() -> Vec<ChatMessage> {
    vec![ChatMessage::new("user", "hi")]
}

fn all_bounded(sources: impl IntoIterator<Item = String>) {
    let tokenizer = tokenizer();
    for source in sources {
        bounded(&tokenizer, &source, &user());
    }
}

/// Some of many sources, the same in each run; all of them in the runs with long property tests.
fn some_bounded(sources: &[String], number: usize) {
    let all = support::case_factor() > 1;
    let step = if all { 1 } else { (sources.len() / number) | 1 };
    all_bounded(sources.iter().step_by(step).cloned());
}

/// How much is repeated: a little (which may render), more than any template has, and more than a stack takes.
const REPEATS: [usize; 3] = [50, 5_000, 100_000];

#[test]
fn chains_of_every_operator_are_bounded() {
    let binary = [
        "+", "-", "*", "/", "//", "%", "**", "~", " and ", " or ", "==", "!=", "<", "<=", ">", ">=", " in ", " not in ",
    ];
    let suffixes =
        [".b", "[0]", "[0:1]", "()", "(a)", "|abs", "|string|length", " is defined", "|default(1)", ".keys()"];
    let prefixes =
        ["not ", "- ", "+", "1 if 0 else ", "1 if 1 if ", "[", "(", "{1:", "{'a':[", "a[", "a(", "(1,", "a|default("];
    let mut sources = Vec::new();
    for n in REPEATS {
        for operator in binary {
            sources.push(format!("{{{{ {} }}}}", vec!["1"; n].join(operator)));
        }
        for suffix in suffixes {
            sources.push(format!("{{{{ 1{} }}}}", suffix.repeat(n)));
            sources.push(format!("{{{{ messages{} }}}}", suffix.repeat(n)));
        }
        for prefix in prefixes {
            sources.push(format!("{{{{ {}1 }}}}", prefix.repeat(n)));
            let close: String =
                prefix.chars().rev().filter_map(|c| "([{".find(c).map(|at| [")", "]", "}"][at])).collect();
            sources.push(format!("{{{{ {}1{} }}}}", prefix.repeat(n), close.repeat(n)));
        }
    }
    all_bounded(sources);
}

#[test]
fn nested_blocks_of_every_kind_are_bounded() {
    let blocks = [
        ("{% if 1 %}", "{% endif %}"),
        ("{% if 0 %}{% else %}", "{% endif %}"),
        ("{% for x in [1] %}", "{% endfor %}"),
        ("{% for x in [] %}{% else %}", "{% endfor %}"),
        ("{% set x %}", "{% endset %}"),
        ("{% with x = 1 %}", "{% endwith %}"),
        ("{% macro m() %}", "{% endmacro %}{{ m() }}"),
        ("{% call m() %}", "{% endcall %}"),
        ("{% filter upper %}", "{% endfilter %}"),
        ("{% generation %}", "{% endgeneration %}"),
        ("{% raw %}", "{% endraw %}"),
        ("{% block b %}", "{% endblock %}"),
        ("{#", "#}"),
    ];
    let flat = [
        "{% elif 0 %}",
        "{{ 1 }}",
        "{% set x = 1 %}",
        "{% macro m() %}{% endmacro %}",
        "{% set (a, b) = (1, 2) %}",
        "{{",
        "{%",
    ];
    let mut sources = Vec::new();
    for n in REPEATS {
        for (open, close) in blocks {
            sources.push(format!("{}{}", open.repeat(n), close.repeat(n)));
            sources.push(open.repeat(n));
        }
        for one in flat {
            sources.push(format!("{{% if 0 %}}{}{{% endif %}}", one.repeat(n)));
        }
        sources.push(format!("{{% set {}a{} = 1 %}}", "(".repeat(n), ")".repeat(n)));
        sources.push(format!("{{% for {}a in [1] %}}{{% endfor %}}", "a, ".repeat(n)));
        sources.push(format!(
            "{{% macro m({}) %}}{{% endmacro %}}{{{{ m({}) }}}}",
            vec!["a"; n].join(","),
            vec!["1"; n].join(",")
        ));
        let names: String = (0..n.min(20_000)).fold(String::new(), |mut names, i| {
            let _ = write!(names, "{{% set v{i} = 1 %}}");
            names
        });
        sources.push(format!("{{% for i in range(99999) %}}{names}{{% endfor %}}"));
    }
    all_bounded(sources);
}

#[test]
fn what_refers_to_itself_is_bounded() {
    let setup = "{% set ns = namespace(x=[], y=[], d={}) %}";
    let growths = [
        "{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}",
        "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}",
        "{% set ns.x = (ns.x, 1, ns.x) %}{% set ns.y = (ns.y, 1, ns.y) %}",
        "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% set ns.y = {'a': ns.y, 'b': ns.y} %}",
        "{% set ns.x = ns.x + [1] + ns.x %}{% set ns.y = ns.x %}",
        "{% set ns.x = ns %}{% set ns.y = [ns] %}",
        "{% set ns.x = namespace(x=ns.x) %}{% set ns.y = ns.x %}",
        "{% set ns.x = [ns.x].copy %}{% set ns.y = ns.x %}",
        "{% set ns.x = cycler(ns.x) %}{% set ns.y = ns.x %}",
        "{% set ns.x = joiner(ns.x) %}{% set ns.y = ns.x %}",
        "{% set ns.x = [loop] %}{% if loop.changed(ns.x) %}{% endif %}{% set ns.y = ns.x %}",
        "{% set ns.x = ns.x|map('string') %}{% set ns.y = [ns.x] %}",
        "{% set ns.x = [ns.x].__class__ %}",
    ];
    let uses = [
        "{{ ns.x }}",
        "{{ ns }}",
        "{{ ns.x|tojson }}",
        "{{ ns.x|tojson(indent=100000) }}",
        "{{ ns.x == ns.y }}",
        "{{ ns.x < ns.y }}",
        "{{ [ns.x, ns.y]|sort|length }}",
        "{{ [ns.x, ns.y]|unique|list|length }}",
        "{{ [ns.x, ns.y]|groupby('x')|length }}",
        "{{ ns.x in [ns.y] }}",
        "{{ {ns.x: 1}|length }}",
        "{{ '%s' % ns.x }}",
        "{{ '{}'.format(ns.x)|length }}",
        "{{ ns.x ~ ns.y }}",
        "{{ ns.x|string|length }}",
        "{{ ns.x|join|length }}",
        "{{ ns.x|sum(start=[])|length }}",
        "{% for a in ns.x recursive %}{{ loop(a) }}{% endfor %}",
        "",
    ];
    let mut sources = Vec::new();
    for growth in growths {
        for rounds in [30, 60, 99_999] {
            for one in uses {
                sources.push(format!("{setup}{{% for i in range({rounds}) %}}{growth}{{% endfor %}}{one}"));
            }
        }
    }
    some_bounded(&sources, 150);
}

#[test]
fn calls_that_do_not_end_are_bounded() {
    let sources = [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(100) }}",
        "{% macro m(n) %}[{{ [[[[m(n-1)|upper]]]]|tojson ~ (1 if m(n-2) else 2) }}]{% endmacro %}{{ m(100) }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% macro w() %}{% call m() %}{{ w() }}{% endcall %}{% endmacro %}{{ w() }}",
        "{% macro m() %}{% filter upper %}{% for i in [1] %}{% set x %}{% with a = m() %}{% endwith %}{% endset %}{% endfor %}{% endfilter %}{% endmacro %}{{ m() }}",
        "{% macro m(a=m()) %}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{{ loop([1, 2]) }}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ raise_exception() if 0 }}{% endfor %}{% endfor %}",
        "{% include 'chat_template' %}{% import 'x' as y %}{% extends 'x' %}",
        "{{ raise_exception('x' * 100000000) }}",
        "{{ debug() }}{{ self }}{{ super() }}",
    ];
    all_bounded(sources.map(str::to_owned));
}

/// Every native, with arguments that would make a careless one use gigabytes or hours.
#[test]
fn natives_with_huge_arguments_are_bounded() {
    let filters = "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float format groupby \
                   indent int items join last length list lower map max min reject rejectattr replace reverse round safe \
                   select selectattr slice sort string sum title tojson trim truncate unique upper urlencode wordcount";
    let methods = "capitalize casefold center count endswith expandtabs find format index isalnum isalpha isdigit islower \
                   isprintable istitle join ljust lower lstrip partition removeprefix replace rfind rjust rpartition rsplit \
                   rstrip split splitlines startswith strip swapcase title upper zfill copy get items keys values";
    let arguments = [
        "",
        "10000000000",
        "9999999999, 'b' * 1000000",
        "'a', 'b' * 1000000",
        "'', 'b' * 1000000",
        "'b' * 1000000",
        "['a' * 1000] * 10000",
        "range(90000)",
        "'upper'",
        "'a.' * 1000000",
        "none, 2",
        "indent=' ' * 1000000",
        "separators=['x' * 1000000, ':']",
        "attribute='a.b'",
        "attribute='0,' * 10000",
        "width=100000000",
        "**{'a': 1}",
    ];
    let receivers = [
        "'a' * 3000000",
        "'a b\\n' * 500000",
        "'é' * 1000000",
        "'{:>9999999}' * 100",
        "'%9999999d' * 100",
        "range(90000)",
        "range(90000)|list",
        "['a' * 1000] * 5000",
        "{'a': 'b' * 1000000}",
        "10 ** 30",
        "1.5e300",
        "messages",
    ];
    let mut sources = Vec::new();
    for receiver in receivers {
        for argument in arguments {
            for filter in filters.split_whitespace() {
                sources.push(format!("{{% set x = ({receiver})|{filter}({argument}) %}}{{{{ x is defined }}}}"));
            }
            for method in methods.split_whitespace() {
                sources.push(format!("{{% set x = ({receiver}).{method}({argument}) %}}{{{{ x is defined }}}}"));
            }
        }
    }
    some_bounded(&sources, 250);
}

/// Work of one call that is allowed, but not a hundred thousand times.
#[test]
fn cheap_steps_with_costly_natives_are_bounded() {
    let setups = [
        "{% set x = 'a' * 30000000 %}{% set y = 'a' * 30000000 %}",
        "{% set x = 'é' * 10000000 %}{% set y = 'é' * 10000000 %}",
        "{% set x = range(99999)|list %}{% set y = range(99999)|list %}",
        "{% set x = [''] * 500000 %}{% set y = [''] * 500000 %}",
    ];
    let steps = [
        "x == y",
        "x < y",
        "x in y",
        "y in [x]",
        "x ~ y",
        "x + y",
        "x[::-1]",
        "x[-1:]",
        "x[1:2]",
        "x[-1]",
        "x * 2",
        "x|upper",
        "x|reverse",
        "x|length",
        "x|list|length",
        "x|sort|length",
        "x|unique|list",
        "x|join|length",
        "x|join('-')",
        "x|first",
        "x|last",
        "x|map('upper')|list",
        "x|select|list",
        "x|reject('none')|list",
        "x|sum",
        "x|max",
        "x|tojson|length",
        "x|string",
        "x.count('b')",
        "x.find('ab')",
        "x.split('b')",
        "x.strip('b')",
        "x.startswith('b')",
        "x.index(-1)",
        "x|batch(2)|list",
        "x|slice(3)|list",
        "x|wordcount",
        "x|int",
        "x|float",
        "x|trim",
        "x|replace('b', 'c')",
        "x|title",
        "x is lower",
        "x is iterable",
        "x is sequence",
        "x|urlencode",
        "x|escape",
        "x|default(1)",
        "x.format(1)",
        "x % 1",
        "x is in(y)",
        "dict(a=x).items()|list",
        "namespace(a=x)",
        "cycler(x, y).next()",
        "x|indent",
        "x|truncate(5)",
        "x|round",
    ];
    let mut sources = Vec::new();
    for setup in setups {
        for step in steps {
            sources.push(format!("{setup}{{% for i in range(99999) %}}{{% for j in range(99999) %}}{{% set z = {step} %}}{{% endfor %}}{{% endfor %}}"));
        }
    }
    some_bounded(&sources, 15);
}

#[test]
fn numbers_of_any_size_are_bounded() {
    let sources = [
        "{{ 10**10**10 }}",
        "{{ 2**100000000 }}",
        "{{ 2**126 * 2**126 }}",
        "{{ -(2**127 - 1) - 2 }}",
        "{{ ('9' * 1000000)|int }}",
        "{{ 1e308 * 10 }}",
        "{{ 1.5|round(1000000000) }}",
        "{{ 1.5|round(-1) }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '{:.999999999}'.format(1.5) }}",
        "{{ range(10**30) }}",
        "{{ range(0, 10, 0) }}",
        "{{ range(-10**38, 10**38, 10**38) }}",
        "{{ [1][10**38] }}",
        "{{ 'abc'[-10**38:10**38:10**38] }}",
        "{{ [1, 2][::-10**38] }}",
        "{{ 'a' * -10**38 }}",
        "{{ 1 // 0 }}{{ 1 % 0 }}",
        "{{ 1.0 // 0 }}",
        "{{ -170141183460469231731687303715884105728 // -1 }}",
        "{{ 99999999999999999999999999999999999999999999 }}",
        "{{ strftime_now('%1000000000Y') }}",
        "{{ strftime_now('%255Y' * 100000) }}",
        "{{ 1e400 }}",
        "{{ '1e400'|float|int }}",
        "{{ 0.1|int(base=99) }}",
        "{{ 'zz'|int(base=36) }}",
        "{{ '%c' % 1114112 }}",
        "{{ '%*d' % (5, 1) }}",
        "{{ '%(' % 1 }}",
        "{{ '{' .format() }}",
        "{{ '{0.a[b]}'.format(messages) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1|round(400) }}{{ (1e300)|round(2, 'ceil') }}",
        "{{ 1|batch(0) }}{{ [1]|slice(0)|list }}",
    ];
    all_bounded(sources.map(str::to_owned));
}

#[test]
fn messages_are_bounded_too() {
    let tokenizer = tokenizer();
    let mut deep = Value::Null;
    for _ in 0..1000 {
        deep = json!([deep]);
    }
    let source = "{{ messages }}{{ messages|tojson }}";
    let message = ChatMessage::new("user", deep);
    assert_eq!(bounded(&tokenizer, source, std::slice::from_ref(&message)), None);
    // `serde_json` drops recursively, which its own parser's limit bounds in files.
    let mut value = message.fields().get("content").cloned();
    drop(message);
    while let Some(Value::Array(mut items)) = value {
        value = items.pop();
    }

    let many: Map<String, Value> = (0..200_000).map(|i| (format!("key{i}"), json!(i))).collect();
    let message = ChatMessage::from(many).with("role", "user").with("content", "hi");
    let found = bounded(&tokenizer, "{% for i in range(1000) %}{{ messages[0].key77777 }}{% endfor %}", &[message]);
    assert_eq!(found.as_deref(), Some(&*"77777".repeat(1000)));

    let huge = [ChatMessage::new("user", "x".repeat(100 << 20))];
    let options = ChatOptions { chat_template: Some("{{ messages[0].content }}".to_owned()), ..ChatOptions::default() };
    let error = tokenizer.apply_chat_template(&huge, &options).expect_err("too large");
    assert_eq!(error.code(), ErrorCode::ChatTemplateFailed);
}
