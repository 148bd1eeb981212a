//! The sites where adapters can act: the linears, the embedding and the norms of a loaded model, as plain data.
//!
//! The model fills a [`SiteTable`] while it loads and passes it to `adapter`, which knows nothing about decoders.

use std::collections::HashMap;
use std::ops::Range;

/// Index of a site in its [`SiteTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u32);

impl SiteId {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a site computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SiteKind {
    /// `y = W x + b`, with W `[out_features, in_features]`.
    Linear,
    /// `y = W[x]`, a row of W `[in_features, out_features]`: the inputs are token ids.
    Embedding,
    /// `y = W x / rms(x) + b` channel by channel, or the same with the standard deviation, with W `[out_features]`; input and
    /// output have the same width.
    Norm,
}

/// One module of the model where adapters can act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The module's path in the Hugging Face model: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What it computes.
    pub kind: SiteKind,
    /// Width of the input; of an embedding its number of rows.
    pub in_features: usize,
    /// Width of the output.
    pub out_features: usize,
    /// Whether the base has a bias here.
    pub has_bias: bool,
    /// Heads of a norm whose weight is `[heads, head_dim]`.
    pub heads: Option<usize>,
}

impl Site {
    /// A linear without bias.
    pub fn linear(path: impl Into<String>, in_features: usize, out_features: usize) -> Self {
        Self { path: path.into(), kind: SiteKind::Linear, in_features, out_features, has_bias: false, heads: None }
    }

    /// An embedding of `rows` tokens.
    pub fn embedding(path: impl Into<String>, rows: usize, width: usize) -> Self {
        let path = path.into();
        Self { path, kind: SiteKind::Embedding, in_features: rows, out_features: width, has_bias: false, heads: None }
    }

    /// A norm over `width` channels.
    pub fn norm(path: impl Into<String>, width: usize) -> Self {
        let path = path.into();
        Self { path, kind: SiteKind::Norm, in_features: width, out_features: width, has_bias: false, heads: None }
    }

    /// A norm with a weight `[heads, head_dim]`.
    pub fn head_norm(path: impl Into<String>, heads: usize, head_dim: usize) -> Self {
        Self { heads: Some(heads), ..Self::norm(path, heads * head_dim) }
    }

    /// The same, with a bias.
    pub fn with_bias(mut self, has_bias: bool) -> Self {
        self.has_bias = has_bias;
        self
    }

    /// Shape of the weight as stored in checkpoints.
    pub fn weight_shape(&self) -> Vec<usize> {
        match self.kind {
            SiteKind::Linear => vec![self.out_features, self.in_features],
            SiteKind::Embedding => vec![self.in_features, self.out_features],
            SiteKind::Norm => match self.heads {
                Some(heads) => vec![heads, self.out_features / heads.max(1)],
                None => vec![self.out_features],
            },
        }
    }
}

/// A part of the base at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SitePart {
    /// Its weight.
    Weight,
    /// Its bias.
    Bias,
}

/// A part of an alias: some outputs of a module that exists under this name in another variant of the model, and the site
/// that has them here.
///
/// A fused `qkv_proj` has the outputs of q, k and v one after the other: three parts, each a whole site. Conversely, a `q_proj`
/// is one part of a fused site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasPart {
    /// Outputs of the alias.
    pub alias_outputs: Range<usize>,
    /// The site that has them here.
    pub site: SiteId,
    /// Which of its outputs they are.
    pub site_outputs: Range<usize>,
}

/// The decoder layers of a model, whose sites have paths `prefix.INDEX.…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerList {
    /// `model.layers`.
    pub prefix: String,
    /// Number of layers.
    pub count: usize,
}

/// Every site of a model, by id and by path.
#[derive(Clone, Debug, Default)]
pub struct SiteTable {
    sites: Vec<Site>,
    by_path: HashMap<String, SiteId>,
    aliases: HashMap<String, Vec<AliasPart>>,
    /// The decoder layers.
    pub layers: LayerList,
    /// The embedding.
    pub embedding: Option<SiteId>,
    /// The output head.
    pub head: Option<SiteId>,
    /// Whether embedding and head share one weight.
    pub is_head_tied: bool,
}

impl SiteTable {
    /// Adds a site and returns its id.
    ///
    /// # Panics
    /// If there is a site with that path already.
    pub fn push(&mut self, site: Site) -> SiteId {
        let id = SiteId(self.sites.len() as u32);
        let before = self.by_path.insert(site.path.clone(), id);
        assert!(before.is_none(), "duplicate site {}", site.path);
        self.sites.push(site);
        id
    }

    /// Adds an alias: a module of another variant of the model as parts of sites, in the order of its outputs.
    ///
    /// # Panics
    /// If a site has that path.
    pub fn add_alias(&mut self, path: impl Into<String>, parts: Vec<AliasPart>) {
        let path = path.into();
        assert!(!self.by_path.contains_key(&path), "{path} is a site");
        self.aliases.insert(path, parts);
    }

    /// Adds an alias for a fused module that consists of these sites, one after the other: `qkv_proj` of q, k and v.
    ///
    /// # Panics
    /// If a site has that path.
    pub fn add_fused_alias(&mut self, path: impl Into<String>, sites: &[SiteId]) {
        let mut start = 0;
        let parts = sites.iter().map(|&site| {
            let width = self.get(site).out_features;
            start += width;
            AliasPart { alias_outputs: start - width..start, site, site_outputs: 0..width }
        });
        let parts = parts.collect();
        self.add_alias(path, parts);
    }

    /// Adds an alias for each module of which a fused site consists, in the order of its outputs: `q_proj`, `k_proj` and `v_proj`
    /// of a `qkv_proj`.
    ///
    /// # Panics
    /// If a site has one of the paths.
    pub fn add_part_aliases<'p>(&mut self, site: SiteId, parts: impl IntoIterator<Item = (&'p str, usize)>) {
        let mut start = 0;
        for (path, width) in parts {
            let part = AliasPart { alias_outputs: 0..width, site, site_outputs: start..start + width };
            self.add_alias(path, vec![part]);
            start += width;
        }
    }

    /// The site with that id.
    ///
    /// # Panics
    /// If the id is from another table.
    pub fn get(&self, id: SiteId) -> &Site {
        &self.sites[id.index()]
    }

    /// The site at a module path.
    pub fn find(&self, path: &str) -> Option<SiteId> {
        self.by_path.get(path).copied()
    }

    /// The parts of an alias.
    pub fn find_alias(&self, path: &str) -> Option<&[AliasPart]> {
        self.aliases.get(path).map(Vec::as_slice)
    }

    /// Every alias and its parts, in no particular order.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &[AliasPart])> {
        self.aliases.iter().map(|(path, parts)| (path.as_str(), parts.as_slice()))
    }

    /// All sites with their ids, in the model's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (SiteId, &Site)> {
        self.sites.iter().enumerate().map(|(i, site)| (SiteId(i as u32), site))
    }

    /// The linears with their ids, in the model's order.
    pub fn linears(&self) -> impl Iterator<Item = (SiteId, &Site)> {
        self.iter().filter(|(_, site)| site.kind == SiteKind::Linear)
    }

    /// Number of sites.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether there are no sites.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_of_a_fused_module_finds_its_sites() {
        let mut sites = SiteTable::default();
        let split =
            [("q_proj", 8), ("k_proj", 4), ("v_proj", 4)].map(|(path, out)| sites.push(Site::linear(path, 6, out)));
        sites.add_fused_alias("qkv_proj", &split);
        let parts = sites.find_alias("qkv_proj").expect("an alias");
        let outputs: Vec<_> = parts.iter().map(|part| (part.site, part.alias_outputs.clone())).collect();
        assert_eq!(outputs, [(split[0], 0..8), (split[1], 8..12), (split[2], 12..16)]);
        assert!(parts.iter().all(|part| part.site_outputs == (0..sites.get(part.site).out_features)));
        assert_eq!((sites.find("qkv_proj"), sites.find("k_proj")), (None, Some(split[1])));
    }

    #[test]
    fn aliases_of_the_parts_of_a_fused_site_cover_it() {
        let mut sites = SiteTable::default();
        let fused = sites.push(Site::linear("qkv_proj", 6, 16));
        sites.add_part_aliases(fused, [("q_proj", 8), ("k_proj", 4), ("v_proj", 4)]);
        let part = |path| sites.find_alias(path).expect("an alias")[0].clone();
        let outputs = ["q_proj", "k_proj", "v_proj"].map(|path| (part(path).alias_outputs, part(path).site_outputs));
        assert_eq!(outputs, [(0..8, 0..8), (0..4, 8..12), (0..4, 12..16)]);
    }
}
