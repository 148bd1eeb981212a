//! Sites inferred from an adapter's own tensors, to check it against where no base is given.

use std::collections::BTreeMap;

use crate::adapter::AdapterFiles;
use crate::adapter::keys::Part;
use crate::adapter::layer_map::{LayerMap, Location, MAX_LAYERS};
use crate::adapter::module_tensors::{self, Contents, ModuleTensors};
use crate::sites::{LayerList, Site, SiteKind, SiteTable};

/// The path of the head in every supported model.
const HEAD: &str = "lm_head";

/// What the tensors say about a module.
#[derive(Default)]
struct InferredModule {
    is_embedding: bool,
    is_norm: bool,
    has_bias: bool,
    /// Sizes that cannot be inferred stay 0.
    in_features: usize,
    out_features: usize,
}

impl AdapterFiles {
    /// The sites that the tensors themselves imply, to check against where there is no model. A size that cannot be inferred
    /// is the smallest possible.
    pub fn inferred_sites(&self) -> SiteTable {
        let contents = module_tensors::classify(self.weights().names());
        let mut sites = SiteTable::default();
        sites.is_head_tied = self.config().ensure_weight_tying || shares_rows(&contents, self);
        if let Some(end) = self.config().layer_replication.iter().map(|(_, end)| *end as usize).max() {
            let layers = |path: &str| Some(path[..path.find(".layers.")? + ".layers".len()].to_owned());
            let prefix = contents.modules.keys().find_map(|path| layers(&contents.prefix.removed_from(path)));
            let prefix = prefix.unwrap_or_else(|| "model.layers".to_owned());
            sites.layers = LayerList { prefix, count: end.min(MAX_LAYERS) };
        }
        let (layer_map, _) = LayerMap::of(self.config(), &sites, contents.prefix);
        let mut modules: BTreeMap<String, InferredModule> = BTreeMap::new();
        for (path, tensors) in &contents.modules {
            if let Location::At(base, _) = layer_map.locate(path) {
                modules.entry(base.into_owned()).or_default().read(path, tensors, self);
            }
        }
        // Tokens that the head can produce and that an invocation names have a row in the embedding.
        let head_rows = modules.get(HEAD).map_or(0, |head| head.out_features);
        let named_rows = self.config().invocation.iter().max().map_or(0, |id| *id as usize + 1);
        let rows = head_rows.max(named_rows);
        for (path, module) in modules {
            let (is_embedding, is_head) = (module.is_embedding, path == HEAD);
            let id = sites.push(module.site(path, rows));
            sites.embedding = sites.embedding.or(is_embedding.then_some(id));
            sites.head = sites.head.or(is_head.then_some(id));
        }
        sites
    }
}

impl InferredModule {
    fn read(&mut self, path: &str, tensors: &ModuleTensors<'_>, files: &AdapterFiles) {
        let shape = |part| match tensors.get(part).map(|name| files.weights().get(name)) {
            Some(Ok(Some(view))) => Some(view.shape()),
            _ => None,
        };
        self.is_embedding |=
            tensors.first(&[Part::EmbeddingA, Part::EmbeddingB]).is_some() || path.ends_with("embed_tokens");
        if let Some(&[_, columns]) = shape(Part::A).or(shape(Part::EmbeddingA)) {
            self.in_features = columns.saturating_mul(columns_per_stored(path, files, tensors));
        }
        if let Some(&[outputs, _]) = shape(Part::B).or(shape(Part::EmbeddingB)) {
            self.out_features = outputs;
        }
        for part in [Part::BBias, Part::Magnitude] {
            if let (0, Some(&[outputs])) = (self.out_features, shape(part)) {
                self.out_features = outputs;
            }
        }
        if let Some(&[outputs]) = Part::BIASES.into_iter().find_map(shape) {
            (self.has_bias, self.out_features) = (true, outputs);
        }
        if let Some(&[rows, width]) = shape(Part::Rows) {
            let ids = files.config().token_rows.iter().flat_map(|(_, ids)| ids);
            let rows = ids.max().map_or(rows, |id| rows.max(*id as usize + 1));
            self.set_weight(rows, width);
        }
        match Part::WEIGHTS.into_iter().find_map(shape) {
            Some(&[rows, columns]) => self.set_weight(rows, columns),
            Some(&[width]) => (self.is_norm, self.in_features, self.out_features) = (true, width, width),
            _ => {}
        }
    }

    fn set_weight(&mut self, rows: usize, columns: usize) {
        (self.in_features, self.out_features) = if self.is_embedding { (rows, columns) } else { (columns, rows) };
    }

    fn site(self, path: String, rows: usize) -> Site {
        let (mut in_features, out_features) = (self.in_features.max(1), self.out_features.max(1));
        let kind = match (self.is_embedding, self.is_norm) {
            (true, _) => SiteKind::Embedding,
            (false, true) => SiteKind::Norm,
            (false, false) => SiteKind::Linear,
        };
        if self.is_embedding {
            in_features = in_features.max(rows);
        }
        Site { path, kind, in_features, out_features, has_bias: self.has_bias, heads: None }
    }
}

/// Whether the head has rows that the config gives to the embedding only: then the two are tied.
fn shares_rows(contents: &Contents<'_>, files: &AdapterFiles) -> bool {
    let rows = contents.modules.get(&*contents.prefix.added_to(HEAD)).and_then(|head| head.get(Part::Rows));
    let is_named =
        files.config().token_rows.iter().flat_map(|(name, _)| name).any(|name| HEAD.ends_with(name.as_str()));
    rows.is_some() && !is_named
}

/// Number of inputs that one stored column of A represents.
fn columns_per_stored(path: &str, files: &AdapterFiles, tensors: &ModuleTensors<'_>) -> usize {
    let config = files.config();
    match &config.blocks {
        _ if tensors.get(Part::A).is_none() => 1,
        Some(blocks) if blocks.a.iter().any(|name| path.contains(name.as_str())) => blocks.count,
        _ => config.pooled_inputs.unwrap_or(1),
    }
}
