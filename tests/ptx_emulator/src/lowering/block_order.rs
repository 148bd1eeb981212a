//! The order of basic blocks.
use std::collections::{HashMap, HashSet};

/// Orders the blocks that can be reached from block 0 so that running the lanes with the smallest program counter
/// first reconverges them at the earliest point: topologically, every loop contiguous and before its exits.
pub(super) fn reconvergent_order(successors: &[Vec<usize>]) -> Vec<usize> {
    let mut reached = HashSet::new();
    let mut pending = vec![0];
    while let Some(block) = pending.pop() {
        if reached.insert(block) {
            pending.extend(&successors[block]);
        }
    }
    let mut blocks = reached.into_iter().collect::<Vec<_>>();
    blocks.sort_unstable();
    let mut order = vec![];
    order_loops(&blocks, successors, &HashSet::new(), 0, &mut order);
    order
}

/// Appends `blocks` to the order: their strongly connected components topologically, each of them again by itself
/// without the edges back to its header. Edges in `removed` do not count.
fn order_loops(
    blocks: &[usize],
    successors: &[Vec<usize>],
    removed: &HashSet<(usize, usize)>,
    entry: usize,
    order: &mut Vec<usize>,
) {
    let members = blocks.iter().copied().collect();
    let mut search = ComponentSearch::new(successors, &members, removed);
    search.visit(entry);
    blocks.iter().for_each(|block| search.visit(*block));
    for component in search.components.into_iter().rev() {
        if component.len() == 1 {
            order.push(component[0]);
            continue;
        }
        let header = header_of(&component, blocks, successors, entry);
        let mut removed = removed.clone();
        removed.extend(component.iter().map(|block| (*block, header)));
        order_loops(&component, successors, &removed, header, order);
    }
}

/// The first block of a loop: the entry, or a block that is entered from outside the loop.
fn header_of(component: &[usize], blocks: &[usize], successors: &[Vec<usize>], entry: usize) -> usize {
    let inside = component.iter().copied().collect::<HashSet<_>>();
    if inside.contains(&entry) {
        return entry;
    }
    let outside = || blocks.iter().filter(|block| !inside.contains(block));
    let entered = component.iter().filter(|block| outside().any(|from| successors[*from].contains(block))).min();
    entered.or(component.iter().min()).copied().unwrap_or(entry)
}

/// Tarjan's search for strongly connected components; the components come in reverse topological order.
struct ComponentSearch<'a> {
    successors: &'a [Vec<usize>],
    members: &'a HashSet<usize>,
    removed: &'a HashSet<(usize, usize)>,
    /// Blocks in the order of their discovery.
    discovered: HashMap<usize, usize>,
    /// The earliest discovery that each block is known to reach.
    lowest: HashMap<usize, usize>,
    stack: Vec<usize>,
    components: Vec<Vec<usize>>,
}

impl<'a> ComponentSearch<'a> {
    fn new(successors: &'a [Vec<usize>], members: &'a HashSet<usize>, removed: &'a HashSet<(usize, usize)>) -> Self {
        Self {
            successors,
            members,
            removed,
            discovered: HashMap::new(),
            lowest: HashMap::new(),
            stack: vec![],
            components: vec![],
        }
    }

    fn discover(&mut self, block: usize) {
        let number = self.discovered.len();
        self.discovered.insert(block, number);
        self.lowest.insert(block, number);
        self.stack.push(block);
    }

    fn lower(&mut self, block: usize, number: usize) {
        if let Some(lowest) = self.lowest.get_mut(&block) {
            *lowest = number.min(*lowest);
        }
    }

    /// Searches from `root` unless it has been discovered. Kernels are deep graphs: no recursion.
    fn visit(&mut self, root: usize) {
        if self.discovered.contains_key(&root) {
            return;
        }
        self.discover(root);
        let mut path = vec![(root, 0)];
        while let Some((block, edge)) = path.last_mut() {
            let block = *block;
            if let Some(&next) = self.successors[block].get(*edge) {
                *edge += 1;
                if !self.members.contains(&next) || self.removed.contains(&(block, next)) {
                    continue;
                }
                match self.discovered.get(&next) {
                    None => {
                        self.discover(next);
                        path.push((next, 0));
                    }
                    Some(&number) if self.stack.contains(&next) => self.lower(block, number),
                    Some(_) => {}
                }
                continue;
            }
            path.pop();
            let lowest = self.lowest[&block];
            if let Some((parent, _)) = path.last() {
                self.lower(*parent, lowest);
            }
            if lowest == self.discovered[&block] {
                let start = self.stack.iter().rposition(|member| *member == block).unwrap_or(0);
                self.components.push(self.stack.split_off(start));
            }
        }
    }
}
