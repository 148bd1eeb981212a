//! Filters that compare elements: `sort`, `dictsort`, `groupby`, `unique`, `min`, `max`.

use std::collections::HashSet;

use crate::jinja::attributes::{get_path, parse_path};
use crate::jinja::error::{Result, fail};
use crate::jinja::ops::{equal, less};
use crate::jinja::runtime::{Args, Runtime, required, str_argument};
use crate::jinja::value::{Key, Value, View};

/// Sorts by a key, stably, with nothing but `less`, as Python does.
pub(super) fn sorted_by<T>(
    runtime: &Runtime,
    items: Vec<T>,
    key: impl Fn(&T) -> &Value + Copy,
    reverse: bool,
) -> Result<Vec<T>> {
    runtime.budget.elements(items.len())?;
    let mut sorted = items;
    if reverse {
        // Equal elements keep their order.
        sorted.reverse();
    }
    let mut sorted = merge_sort(runtime, sorted, key)?;
    if reverse {
        sorted.reverse();
    }
    Ok(sorted)
}

fn merge_sort<T>(runtime: &Runtime, mut items: Vec<T>, key: impl Fn(&T) -> &Value + Copy) -> Result<Vec<T>> {
    if items.len() < 2 {
        return Ok(items);
    }
    runtime.budget.work(20 * items.len())?;
    let right = items.split_off(items.len() / 2);
    let left = merge_sort(runtime, items, key)?;
    let right = merge_sort(runtime, right, key)?;
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let from = if less(runtime, key(b), key(a))? { &mut right } else { &mut left };
        merged.extend(from.next());
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

/// A text in lower case, and any other value as it is.
fn ignore_case(runtime: &Runtime, value: Value) -> Result<Value> {
    match value {
        Value::Str(text) => {
            runtime.budget.memory(3 * text.len())?;
            Ok(Value::Str(text.to_lowercase().into()))
        }
        Value::Markup(_) => fail("sorting texts marked as safe is not supported"),
        other => Ok(other),
    }
}

fn is_true(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.truth())
}

/// What elements are compared by.
struct By {
    path: Vec<Value>,
    case_sensitive: bool,
    default: Option<Value>,
}

impl By {
    fn new(runtime: &Runtime, attribute: Option<Value>, case_sensitive: Option<Value>) -> Result<Self> {
        let path = parse_path(runtime, &attribute.unwrap_or(Value::None))?;
        Ok(Self { path, case_sensitive: is_true(case_sensitive), default: None })
    }

    fn key(&self, runtime: &Runtime, item: &Value) -> Result<Value> {
        let value = get_path(runtime, item, &self.path, self.default.as_ref())?;
        if self.case_sensitive { Ok(value) } else { ignore_case(runtime, value) }
    }

    /// Each element with its key.
    fn keyed(&self, runtime: &Runtime, value: &Value) -> Result<Vec<(Value, Value)>> {
        let items = runtime.iterate(value)?;
        let pair = |item: &Value| {
            runtime.budget.elements(1)?;
            Ok((self.key(runtime, item)?, item.clone()))
        };
        items.values.iter().map(pair).collect()
    }
}

pub(super) fn sort(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [reverse, case_sensitive, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
    let reverse = is_true(reverse);
    // Several attributes stand between commas.
    let attributes = match &attribute {
        Some(Value::Str(list)) => {
            runtime.budget.elements(list.len())?;
            list.split(',').map(|one| Value::Str(one.into())).collect()
        }
        Some(other) => vec![other.clone()],
        None => vec![Value::None],
    };
    let by: Vec<By> = attributes
        .into_iter()
        .map(|attribute| By::new(runtime, Some(attribute), case_sensitive.clone()))
        .collect::<Result<_>>()?;
    let items = runtime.iterate(&value)?;
    let mut keyed = Vec::new();
    for item in &items.values {
        let keys = by.iter().map(|by| by.key(runtime, item)).collect::<Result<_>>()?;
        keyed.push((runtime.list(keys)?, item.clone()));
    }
    let sorted = sorted_by(runtime, keyed, |(key, _)| key, reverse)?;
    runtime.list(sorted.into_iter().map(|(_, item)| item).collect())
}

pub(super) fn dictsort(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let position = match &by {
        None => 0,
        Some(by) => match &**str_argument(by, "dictsort")? {
            "key" => 0,
            "value" => 1,
            _ => return fail("You can only sort by either \"key\" or \"value\""),
        },
    };
    let Value::Dict(dict) = value else { return fail(format!("dictsort needs a dict, not a {}", value.type_name())) };
    let mut by = By::new(runtime, None, case_sensitive)?;
    by.path = vec![Value::Int(position)];
    let keyed = by.keyed(runtime, &Value::View(View::Items, dict))?;
    let sorted = sorted_by(runtime, keyed, |(key, _)| key, is_true(reverse))?;
    runtime.list(sorted.into_iter().map(|(_, item)| item).collect())
}

pub(super) fn groupby(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [attribute, default, case_sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let mut by = By::new(runtime, Some(required(attribute, "groupby")?), case_sensitive)?;
    by.default = default.filter(|default| !matches!(default, Value::None));
    let sorted = sorted_by(runtime, by.keyed(runtime, &value)?, |(key, _)| key, false)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in sorted {
        match groups.last_mut() {
            Some((last, items)) if equal(runtime, last, &key)? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let pair = |(key, items): (Value, Vec<Value>)| {
        let grouper = match items.first() {
            Some(first) if !by.case_sensitive => get_path(runtime, first, &by.path, by.default.as_ref())?,
            _ => key,
        };
        runtime.group(grouper, items)
    };
    runtime.list(groups.into_iter().map(pair).collect::<Result<_>>()?)
}

pub(super) fn unique(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
    let by = By::new(runtime, attribute, case_sensitive)?;
    // No key is one of the values that can change.
    #[allow(clippy::mutable_key_type)]
    let mut seen: HashSet<Key> = HashSet::new();
    let mut chosen = Vec::new();
    let mut seen_undefined = false;
    for (key, item) in by.keyed(runtime, &value)? {
        runtime.budget.elements(1)?;
        let is_new = match &key {
            Value::Undefined(_) => !std::mem::replace(&mut seen_undefined, true),
            key => seen.insert(runtime.key(key)?),
        };
        if is_new {
            chosen.push(item);
        }
    }
    runtime.generator(chosen)
}

pub(super) fn min(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    extreme(runtime, &value, args, "min")
}

pub(super) fn max(runtime: &Runtime, value: Value, args: Args) -> Result<Value> {
    extreme(runtime, &value, args, "max")
}

fn extreme(runtime: &Runtime, value: &Value, args: Args, name: &str) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
    let mut best: Option<(Value, Value)> = None;
    for (key, item) in By::new(runtime, attribute, case_sensitive)?.keyed(runtime, value)? {
        let is_better = match &best {
            None => true,
            Some((best, _)) if name == "min" => less(runtime, &key, best)?,
            Some((best, _)) => less(runtime, best, &key)?,
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::Undefined("an extreme of nothing".into()), |(_, item)| item))
}
