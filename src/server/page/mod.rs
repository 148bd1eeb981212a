//! The page at `/`: HTML, CSS and JavaScript modules, embedded as they are written. It asks nothing of any other server,
//! and needs no key itself; what it asks of the API does.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

/// A file of the page.
#[derive(Clone, Copy)]
struct Asset {
    /// Where it is found, such as `/page/main.js`.
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($name:literal, $content_type:ident) => {
        Asset { path: concat!("/page/", $name), content_type: $content_type, text: include_str!($name) }
    };
}

const INDEX: Asset = Asset { path: "/", content_type: HTML, text: include_str!("index.html") };

const ASSETS: [Asset; 19] = [
    INDEX,
    asset!("page.css", CSS),
    asset!("adapter_list.js", JAVASCRIPT),
    asset!("code_dialog.js", JAVASCRIPT),
    asset!("code_samples.js", JAVASCRIPT),
    asset!("column.js", JAVASCRIPT),
    asset!("elements.js", JAVASCRIPT),
    asset!("event_stream.js", JAVASCRIPT),
    asset!("keys.js", JAVASCRIPT),
    asset!("main.js", JAVASCRIPT),
    asset!("prometheus.js", JAVASCRIPT),
    asset!("request.js", JAVASCRIPT),
    asset!("request_form.js", JAVASCRIPT),
    asset!("server.js", JAVASCRIPT),
    asset!("settings.js", JAVASCRIPT),
    asset!("theme.js", JAVASCRIPT),
    asset!("throughput.js", JAVASCRIPT),
    asset!("throughput_plot.js", JAVASCRIPT),
    asset!("word_diff.js", JAVASCRIPT),
];

/// Scripts and styles come from files of this server alone, requests go to it alone, and text cannot become markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The routes of the page, for a router with any state.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.into_iter().fold(Router::new(), |router, asset| {
        let etag = etag(asset.text);
        router.route(asset.path, get(async move |headers: HeaderMap| answer(asset, &etag, &headers)))
    })
}

/// The asset, or 304 for a client that has it. A cached copy is used only after asking, so that an update is seen at
/// once.
fn answer(asset: Asset, etag: &str, request: &HeaderMap) -> Response {
    let headers: [(HeaderName, &str); 6] = [
        (CONTENT_TYPE, asset.content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
        (ETAG, etag),
    ];
    if has(request, etag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, asset.text).into_response()
}

/// Whether the client names this entity tag among those that it has.
fn has(request: &HeaderMap, etag: &str) -> bool {
    let known = request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|value| value.split(',')).any(|tag| tag.trim().trim_start_matches("W/") == etag)
}

/// An entity tag of a text: part of its SHA-256.
fn etag(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
    }

    #[test]
    fn whatever_the_page_refers_to_is_served() {
        let paths: Vec<&str> = ASSETS.iter().map(|asset| asset.path).collect();
        for path in names_between(INDEX.text, "\"page/", "\"") {
            assert!(paths.contains(&format!("/page/{path}").as_str()), "index.html refers to {path}");
        }
        let mut imported = vec!["main.js"];
        for asset in ASSETS {
            for name in names_between(asset.text, "from \"./", "\"") {
                assert!(paths.contains(&format!("/page/{name}").as_str()), "{} imports {name}", asset.path);
                imported.push(name);
            }
        }
        for asset in ASSETS.iter().filter(|asset| asset.content_type == JAVASCRIPT) {
            assert!(imported.iter().any(|name| asset.path.ends_with(&format!("/{name}"))), "{} is unused", asset.path);
        }
    }

    #[test]
    fn every_module_of_the_folder_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/page");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_served = ASSETS.iter().any(|asset| asset.path.ends_with(&format!("/{name}")));
            assert!(is_served || name == "mod.rs" || name == "index.html", "{name} is not served");
        }
    }

    #[test]
    fn the_page_names_no_other_server_and_contains_no_inline_script_or_style() {
        for asset in ASSETS {
            let text = asset.text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("://"), "{} names another server", asset.path);
            assert!(!text.contains("innerHTML") && !text.contains("insertAdjacentHTML"), "{}", asset.path);
        }
        assert_eq!(INDEX.text.matches("<script").count(), 1);
        for inline in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
            assert!(!INDEX.text.contains(inline), "{inline}");
        }
    }

    #[test]
    fn a_copy_that_is_still_right_is_not_sent_again() {
        let etag = etag(INDEX.text);
        let with = |value: &str| HeaderMap::from_iter([(IF_NONE_MATCH, value.parse().unwrap())]);
        assert_eq!(answer(INDEX, &etag, &HeaderMap::new()).status(), StatusCode::OK);
        assert_eq!(answer(INDEX, &etag, &with("\"another\"")).status(), StatusCode::OK);
        for value in [etag.clone(), format!("W/{etag}"), format!("\"another\", {etag}")] {
            let response = answer(INDEX, &etag, &with(&value));
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(response.headers()[CONTENT_SECURITY_POLICY], POLICY);
        }
    }
}
