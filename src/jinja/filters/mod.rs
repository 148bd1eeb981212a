//! Jinja2's filters, and transformers' `tojson`.

mod choose;
mod json;
mod numbers;
mod sequences;
mod sort;
mod texts;

use super::error::{Result, fail, quoted};
use super::runtime::Native;

/// The filter of this name.
pub(super) fn find(name: &str) -> Result<Native> {
    Ok(match name {
        "abs" => numbers::abs,
        "attr" => sequences::attr,
        "batch" => sequences::batch,
        "capitalize" => texts::capitalize,
        "center" => texts::center,
        "count" | "length" => sequences::length,
        "d" | "default" => sequences::default,
        "dictsort" => sort::dictsort,
        "e" | "escape" => texts::escape,
        "filesizeformat" => numbers::filesizeformat,
        "first" => sequences::first,
        "float" => numbers::float,
        "format" => texts::format,
        "groupby" => sort::groupby,
        "indent" => texts::indent,
        "int" => numbers::int,
        "items" => sequences::items,
        "join" => texts::join,
        "last" => sequences::last,
        "list" => sequences::list,
        "lower" => texts::lower,
        "map" => choose::map,
        "max" => sort::max,
        "min" => sort::min,
        "reject" => choose::reject,
        "rejectattr" => choose::rejectattr,
        "replace" => texts::replace,
        "reverse" => sequences::reverse,
        "round" => numbers::round,
        "safe" => texts::safe,
        "select" => choose::select,
        "selectattr" => choose::selectattr,
        "slice" => sequences::slice,
        "sort" => sort::sort,
        "string" => texts::string,
        "sum" => numbers::sum,
        "title" => texts::title,
        "tojson" => json::tojson,
        "trim" => texts::trim,
        "truncate" => texts::truncate,
        "unique" => sort::unique,
        "upper" => texts::upper,
        "urlencode" => texts::urlencode,
        "wordcount" => texts::wordcount,
        "forceescape" | "pprint" | "random" | "striptags" | "urlize" | "wordwrap" | "xmlattr" => {
            return fail(format!("the filter '{name}' is not supported"));
        }
        _ => return fail(format!("there is no filter '{}'", quoted(name))),
    })
}

/// Whether Jinja2 has this filter, for the test `filter`.
pub(super) fn exists(name: &str) -> bool {
    find(name).is_ok()
        || matches!(name, "forceescape" | "pprint" | "random" | "striptags" | "urlize" | "wordwrap" | "xmlattr")
}
