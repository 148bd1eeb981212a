//! Reads which source file imports from which, out of Rust sources.
//!
//! An import is a path in a `use`, a type, an expression or a macro call that leads to a module of the crate: through `crate`,
//! `self` or `super`, through a child module's name, or through a module that a `use` brought into scope. It counts for the
//! file that defines the item: a name that a module re-exports leads to where the module has it from, and a re-export from
//! a module's own children, of names that the file does not use itself, is no import. Unit tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, File, Ident, Item, ItemMod, ItemUse, UseTree, Visibility};

/// Imports between files: for each importer and each file it imports from, the paths as written.
pub type Imports = BTreeMap<(PathBuf, PathBuf), BTreeSet<String>>;

/// A module of the crate: a file, or a part of one.
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// What the module defines itself.
    items: BTreeSet<String>,
    /// Public `use` of a name, by that name.
    reexports: BTreeMap<String, Vec<String>>,
    /// Public `use` of everything in a module.
    globs: Vec<Vec<String>>,
}

/// The files and modules of a crate.
pub struct Crate {
    modules: Vec<Module>,
    /// The parsed files, each with its module.
    files: Vec<(usize, File)>,
}

/// One name of a `use` statement: the path to it, and what it is called here. `*` is called nothing.
struct Imported {
    path: Vec<String>,
    name: Option<String>,
}

impl Crate {
    /// Reads a crate from its root file. File names are kept relative to the root's folder.
    pub fn read(root: &Path) -> Self {
        let folder = root.parent().expect("a file lies in a folder");
        let mut sources = |path: &Path| fs::read_to_string(folder.join(path)).ok();
        Self::from_sources(Path::new(root.file_name().expect("a file has a name")), &mut sources)
    }

    /// Reads a crate whose files come from a function, which returns `None` for a file that does not exist.
    pub fn from_sources(root: &Path, sources: &mut dyn FnMut(&Path) -> Option<String>) -> Self {
        let mut found = Self { modules: Vec::new(), files: Vec::new() };
        let text = sources(root).expect("the root file is readable");
        found.add_file(root.to_owned(), None, Path::new(""), &text, sources);
        found
    }

    fn add_file(
        &mut self,
        file: PathBuf,
        parent: Option<usize>,
        folder: &Path,
        text: &str,
        sources: &mut dyn FnMut(&Path) -> Option<String>,
    ) -> usize {
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let module = self.add_module(file, parent);
        self.add_items(module, &parsed.items, folder, sources);
        self.files.push((module, parsed));
        module
    }

    fn add_module(&mut self, file: PathBuf, parent: Option<usize>) -> usize {
        self.modules.push(Module {
            file,
            parent,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            reexports: BTreeMap::new(),
            globs: Vec::new(),
        });
        self.modules.len() - 1
    }

    /// Notes what a module defines and re-exports, and reads the files of its children, which lie in `folder`.
    fn add_items(
        &mut self,
        module: usize,
        items: &[Item],
        folder: &Path,
        sources: &mut dyn FnMut(&Path) -> Option<String>,
    ) {
        for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
            if let Some(name) = defined_name(item) {
                self.modules[module].items.insert(name.to_string());
            }
            match item {
                Item::Mod(ItemMod { ident, content, .. }) => {
                    let name = ident.to_string();
                    let inner = folder.join(&name);
                    let child = if let Some((_, items)) = content {
                        let child = self.add_module(self.modules[module].file.clone(), Some(module));
                        self.add_items(child, items, &inner, sources);
                        child
                    } else {
                        let places = [inner.join("mod.rs"), folder.join(format!("{name}.rs"))];
                        let (file, text) = places
                            .into_iter()
                            .find_map(|place| sources(&place).map(|text| (place, text)))
                            .unwrap_or_else(|| panic!("no file for module `{name}` in {}", folder.display()));
                        self.add_file(file, Some(module), &inner, &text, sources)
                    };
                    self.modules[module].children.insert(name, child);
                }
                Item::Use(item) if !matches!(item.vis, Visibility::Inherited) => {
                    for Imported { path, name } in names_of(item) {
                        match name {
                            Some(name) => drop(self.modules[module].reexports.insert(name, path)),
                            None => self.modules[module].globs.push(path),
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The files of the crate.
    pub fn files(&self) -> BTreeSet<&Path> {
        self.files.iter().map(|&(module, _)| self.modules[module].file.as_path()).collect()
    }

    /// The module in which a path ends, seen from a module: that of its last item, re-exports followed. `None` for a path that
    /// leads out of the crate, or to an item that is local to the module.
    fn resolve(&self, from: usize, path: &[String]) -> Option<usize> {
        let first = path.first()?;
        // A keyword alone is a visibility in a macro's arguments, a child's name alone may be any other name.
        let leads_on =
            ["crate", "self", "super"].contains(&first.as_str()) || self.modules[from].children.contains_key(first);
        let leads_on = leads_on && path.len() > 1;
        leads_on.then(|| self.follow(from, path, 0))
    }

    fn follow(&self, from: usize, path: &[String], depth: usize) -> usize {
        assert!(depth < 32, "re-exports of {path:?} run in a circle");
        let mut module = from;
        for (at, name) in path.iter().enumerate() {
            let here = &self.modules[module];
            module = match name.as_str() {
                "crate" => 0,
                "self" => module,
                "super" => here.parent.expect("a module with `super` has a parent"),
                name => match here.children.get(name) {
                    Some(&child) => child,
                    None => return self.definer(module, name, &path[at + 1..], depth),
                },
            };
        }
        module
    }

    /// The module that defines an item found in a module, of which `rest` is a part.
    fn definer(&self, module: usize, name: &str, rest: &[String], depth: usize) -> usize {
        let here = &self.modules[module];
        if let Some(path) = here.reexports.get(name).filter(|_| !here.items.contains(name)) {
            let path: Vec<String> = path.iter().chain(rest).cloned().collect();
            return self.resolve(module, &path).map_or(module, |_| self.follow(module, &path, depth + 1));
        }
        if !here.items.contains(name) {
            for glob in here.globs.iter().filter(|glob| self.resolve(module, glob).is_some()) {
                let source = self.follow(module, glob, depth + 1);
                if source != module && self.modules[source].items.contains(name) {
                    return source;
                }
            }
        }
        module
    }

    fn is_inside(&self, module: usize, ancestor: usize) -> bool {
        let mut parents = std::iter::successors(Some(module), |&at| self.modules[at].parent);
        parents.any(|at| at == ancestor)
    }

    /// Every import of a file from another.
    pub fn imports(&self) -> Imports {
        let mut found = Imports::new();
        for (module, parsed) in &self.files {
            let mut reader = Reader { of: self, module: *module, scope: BTreeMap::new(), paths: Vec::new() };
            reader.visit_file(parsed);
            let importer = &self.modules[*module].file;
            for (from, path) in reader.all_imports() {
                let file = &self.modules[from].file;
                if file != importer {
                    found.entry((importer.clone(), file.clone())).or_default().insert(path);
                }
            }
        }
        found
    }
}

/// Collects the paths that a file names.
struct Reader<'c> {
    of: &'c Crate,
    module: usize,
    /// What `use` statements bring into the file's scope.
    scope: BTreeMap<String, (usize, Vec<String>)>,
    /// Each path, the module in which it is written, and whether it is a re-export from a child.
    paths: Vec<(usize, Vec<String>, Use)>,
}

#[derive(PartialEq)]
enum Use {
    Import,
    /// A re-export from the module's own children, under this name.
    ReExport(Option<String>),
    /// A path in code.
    Path,
}

impl Reader<'_> {
    fn all_imports(self) -> Vec<(usize, String)> {
        let used: BTreeSet<&String> =
            self.paths.iter().filter(|path| path.2 == Use::Path).filter_map(|path| path.1.first()).collect();
        let mut found = Vec::new();
        let mut leading_on = Vec::new();
        for (module, path, kind) in &self.paths {
            if matches!(kind, Use::ReExport(name) if name.as_ref().is_none_or(|name| !used.contains(name))) {
                continue;
            }
            if let Some(target) = self.of.resolve(*module, path) {
                found.push((target, path.join("::")));
            } else if let Some((from, prefix)) = path.first().and_then(|first| self.scope.get(first)) {
                // A path that begins with a name in scope leads on from there.
                let whole: Vec<String> = prefix.iter().chain(&path[1..]).cloned().collect();
                leading_on.extend(self.of.resolve(*from, &whole).map(|target| (target, path.join("::"))));
            }
        }
        let is_new = |target| !found.iter().any(|&(known, _)| known == target);
        leading_on.retain(|&(target, _)| is_new(target));
        found.extend(leading_on);
        found
    }

    /// The paths in a macro's arguments: names joined by `::`.
    fn visit_tokens(&mut self, tokens: proc_macro2::TokenStream) {
        use proc_macro2::TokenTree;
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.end_path(&mut path);
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => colons += 1,
                other => {
                    self.end_path(&mut path);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.visit_tokens(group.stream());
                    }
                }
            }
        }
        self.end_path(&mut path);
    }

    fn end_path(&mut self, path: &mut Vec<String>) {
        if !path.is_empty() {
            self.paths.push((self.module, std::mem::take(path), Use::Path));
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.content.is_some() {
            let inner = self.of.modules[self.module].children[&item.ident.to_string()];
            let outer = std::mem::replace(&mut self.module, inner);
            visit::visit_item_mod(self, item);
            self.module = outer;
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        for Imported { path, name } in names_of(item) {
            let target = self.of.resolve(self.module, &path);
            let from_child =
                target.is_some_and(|target| target != self.module && self.of.is_inside(target, self.module));
            if let Some(name) = &name {
                self.scope.insert(name.clone(), (self.module, path.clone()));
            }
            let kind = if is_public && from_child { Use::ReExport(name) } else { Use::Import };
            self.paths.push((self.module, path, kind));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.paths.push((self.module, names, Use::Path));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.visit_path(&called.path);
        self.visit_tokens(called.tokens.clone());
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}
}

/// The names that a `use` statement imports.
fn names_of(item: &ItemUse) -> Vec<Imported> {
    fn collect(tree: &UseTree, prefix: &[String], found: &mut Vec<Imported>) {
        let with = |name: &Ident| prefix.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => collect(&path.tree, &with(&path.ident), found),
            UseTree::Name(name) if name.ident == "self" => {
                found.push(Imported { path: prefix.to_vec(), name: prefix.last().cloned() });
            }
            UseTree::Name(name) => found.push(Imported { path: with(&name.ident), name: Some(name.ident.to_string()) }),
            UseTree::Rename(name) => {
                let path = if name.ident == "self" { prefix.to_vec() } else { with(&name.ident) };
                found.push(Imported { path, name: Some(name.rename.to_string()) });
            }
            UseTree::Glob(_) => found.push(Imported { path: prefix.to_vec(), name: None }),
            UseTree::Group(group) => group.items.iter().for_each(|tree| collect(tree, prefix, found)),
        }
    }
    let mut found = Vec::new();
    collect(&item.tree, &[], &mut found);
    found
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<Ident>().is_ok_and(|name| name == "test")
    };
    attributes.iter().any(is_test)
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn defined_name(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        Item::Fn(item) => Some(&item.sig.ident),
        Item::Macro(item) => item.ident.as_ref(),
        Item::Static(item) => Some(&item.ident),
        Item::Struct(item) => Some(&item.ident),
        Item::Trait(item) => Some(&item.ident),
        Item::Type(item) => Some(&item.ident),
        _ => None,
    }
}
