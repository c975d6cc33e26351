//! Where the two sides of a divergent branch meet again: the immediate post-dominator of the branch.
//!
//! Blocks that can only end in `trap` or a panic do not count as ways to the end, as a check that never fails must
//! not keep a warp apart for the rest of the kernel.

use crate::isa::{Control, Inst, Op};

/// A block of instructions that run one after the other.
struct Block {
    start: usize,
    successors: Vec<usize>,
    exits: bool,
}

/// Fills in the reconvergence point of every branch with a guard.
pub(crate) fn set_reconvergence(code: &mut [Inst]) {
    let (blocks, block_of) = blocks(code);
    let immediate = immediate_post_dominators(&blocks);
    for (at, inst) in code.iter_mut().enumerate() {
        if let (Op::Control(Control::Branch { reconverge, .. }), true) = (&mut inst.op, inst.guard.is_some()) {
            *reconverge = immediate[block_of[at]].map(|block| blocks[block].start as u32);
        }
    }
}

fn blocks(code: &[Inst]) -> (Vec<Block>, Vec<usize>) {
    let mut starts = vec![false; code.len() + 1];
    starts[0] = true;
    for (at, inst) in code.iter().enumerate() {
        if let Op::Control(control) = &inst.op {
            if let Control::Branch { target, .. } = control {
                starts[*target as usize] = true;
            }
            starts[at + 1] |= !matches!(control, Control::Nothing);
        }
    }
    let mut block_of = Vec::with_capacity(code.len());
    let mut count = 0;
    for start in starts.iter().take(code.len()) {
        count += usize::from(*start);
        block_of.push(count - 1);
    }
    let mut blocks: Vec<Block> = Vec::with_capacity(count);
    for (at, inst) in code.iter().enumerate() {
        if starts[at] {
            blocks.push(Block { start: at, successors: Vec::new(), exits: false });
        }
        if !starts[at + 1] && at + 1 < code.len() {
            continue;
        }
        let block = blocks.last_mut().expect("the first instruction starts a block");
        let falls_through = match &inst.op {
            Op::Control(Control::Branch { target, .. }) => {
                block.successors.push(block_of[*target as usize]);
                inst.guard.is_some()
            }
            Op::Control(Control::Exit) => {
                block.exits = true;
                inst.guard.is_some()
            }
            Op::Control(Control::Trap | Control::Panic { .. }) => inst.guard.is_some(),
            _ => true,
        };
        if falls_through && at + 1 < code.len() {
            block.successors.push(block_of[at + 1]);
        }
    }
    (blocks, block_of)
}

/// The immediate post-dominator of each block, by the algorithm of Cooper, Harvey and Kennedy on the reversed graph.
fn immediate_post_dominators(blocks: &[Block]) -> Vec<Option<usize>> {
    let end = blocks.len();
    let mut predecessors = vec![Vec::new(); end + 1];
    for (at, block) in blocks.iter().enumerate() {
        for successor in &block.successors {
            predecessors[*successor].push(at);
        }
        if block.exits {
            predecessors[end].push(at);
        }
    }
    let order = postorder(end, &predecessors);
    let mut rank = vec![usize::MAX; end + 1];
    for (place, block) in order.iter().enumerate() {
        rank[*block] = place;
    }
    let mut parent = vec![None; end + 1];
    parent[end] = Some(end);
    let mut changed = true;
    while changed {
        changed = false;
        for &block in order.iter().rev().filter(|block| **block != end) {
            let exit = blocks[block].exits.then_some(end);
            let mut meet: Option<usize> = None;
            for successor in blocks[block].successors.iter().copied().chain(exit) {
                if parent[successor].is_some() {
                    meet = Some(meet.map_or(successor, |other| intersect(&parent, &rank, other, successor)));
                }
            }
            changed |= parent[block] != meet;
            parent[block] = meet;
        }
    }
    parent.truncate(end);
    parent.into_iter().map(|block| block.filter(|b| *b != end)).collect()
}

fn postorder(root: usize, edges: &[Vec<usize>]) -> Vec<usize> {
    let mut seen = vec![false; edges.len()];
    let mut order = Vec::new();
    let mut stack = vec![(root, 0)];
    seen[root] = true;
    while let Some((node, next)) = stack.pop() {
        match edges[node].get(next) {
            None => order.push(node),
            Some(&to) => {
                stack.push((node, next + 1));
                if !seen[to] {
                    seen[to] = true;
                    stack.push((to, 0));
                }
            }
        }
    }
    order
}

fn intersect(parent: &[Option<usize>], rank: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while rank[a] < rank[b] {
            a = parent[a].expect("a ranked block has a parent");
        }
        while rank[b] < rank[a] {
            b = parent[b].expect("a ranked block has a parent");
        }
    }
    a
}
