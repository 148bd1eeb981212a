//! Which headers a source includes, so that a change of one compiles no other source again.

use super::sources::Header;

/// The headers that a source includes, directly or through others, in the order in which they are first named. A name that
/// is no header's is left to the compiler to report.
pub(super) fn included<'h>(source: &str, headers: &'h [Header]) -> Vec<&'h Header> {
    let mut found: Vec<&Header> = Vec::new();
    let mut texts = vec![source];
    while let Some(text) = texts.pop() {
        for name in text.lines().filter_map(included_name) {
            let header = headers.iter().find(|header| header.name == name);
            if let Some(header) = header.filter(|header| !found.contains(header)) {
                found.push(header);
                texts.push(header.text);
            }
        }
    }
    found
}

/// The name in a line such as `#include "ptx.cuh"`.
fn included_name(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
    rest.trim_start().strip_prefix('"')?.split_once('"').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &[Header] = &[
        Header { name: "a.cuh", text: "# include \"b.cuh\"\n#include \"a.cuh\"" },
        Header { name: "b.cuh", text: "#pragma once\n" },
        Header { name: "c.cuh", text: "" },
    ];

    #[test]
    fn headers_are_followed_and_each_is_named_once() {
        let names = |source| included(source, HEADERS).iter().map(|header| header.name).collect::<Vec<_>>();
        assert_eq!(names("// includes\n  #include \"a.cuh\"  // as\n#include \"b.cuh\"\n"), ["a.cuh", "b.cuh"]);
        assert_eq!(names("// #include \"c.cuh\"\n#include <c.cuh>\n#include \"d.cuh\"\n#includec\n"), [""; 0]);
    }
}
