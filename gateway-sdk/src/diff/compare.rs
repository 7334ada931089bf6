//! Two values, path by path.

use std::collections::BTreeMap;

use activity_proto::audit::v1 as proto;

use super::Secrets;
use super::node::Node;

/// The contract's limit.
const MAX_PATH_BYTES: usize = 1_024;
/// Pairs of elements of two arrays, what they have in common at either end aside, that are
/// looked at for the fewest changes.
const MAX_PAIRS: usize = 65_536;
/// Members that say which thing an object is.
const NAMES: [&str; 3] = ["id", "key", "name"];

/// What differs. Of what is not there on one side every member is a change.
pub(super) fn compare(old: Option<Node>, new: Option<Node>, secrets: &Secrets) -> Vec<proto::Change> {
    let mut compare = Compare { secrets, path: String::new(), changes: Vec::new() };
    let none = BTreeMap::new();
    match (&old, &new) {
        (Some(old), Some(new)) => compare.nodes(old, new),
        (None, Some(Node::Map(new))) if compare.have_places(new.keys()) => compare.maps(&none, new),
        (Some(Node::Map(old)), None) if compare.have_places(old.keys()) => compare.maps(old, &none),
        (old, new) => compare.change(old.as_ref(), new.as_ref()),
    }
    compare.changes
}

struct Compare<'a> {
    secrets: &'a Secrets,
    path: String,
    changes: Vec<proto::Change>,
}

impl Compare<'_> {
    fn nodes(&mut self, old: &Node, new: &Node) {
        match (old, new) {
            (old, new) if old.same(new) => {}
            (Node::Map(old_map), Node::Map(new_map)) => {
                let differs = |name: &String| match (old_map.get(name), new_map.get(name)) {
                    (Some(old), Some(new)) => !old.same(new),
                    _ => true,
                };
                if self.have_places(old_map.keys().chain(new_map.keys()).filter(|name| differs(name))) {
                    self.maps(old_map, new_map);
                } else {
                    self.change(Some(old), Some(new));
                }
            }
            (Node::List(old_list), Node::List(new_list)) => {
                // As long as a number gets.
                if self.has_place("18446744073709551615") {
                    self.lists(old_list, new_list);
                } else {
                    self.change(Some(old), Some(new));
                }
            }
            // What one of them hides, the other must not show.
            (Node::Secret(_), _) | (_, Node::Secret(_)) => self.change(Some(&hidden(old)), Some(&hidden(new))),
            (old, new) => self.change(Some(old), Some(new)),
        }
    }

    fn maps(&mut self, old: &BTreeMap<String, Node>, new: &BTreeMap<String, Node>) {
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            self.at(name, |compare| match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) => compare.nodes(old, new),
                (old, new) => compare.change(old, new),
            });
        }
    }

    /// The removed ones from behind, then the added ones, then those that were edited: each
    /// place is right when its turn comes.
    fn lists(&mut self, old: &[Node], new: &[Node]) {
        let pairs = pair(old, new);
        let mut kept = vec![false; old.len()];
        let mut from = vec![None; new.len()];
        for (one, other) in pairs {
            kept[one] = true;
            from[other] = Some(one);
        }
        for (place, node) in old.iter().enumerate().rev().filter(|(place, _)| !kept[*place]) {
            self.at(&place.to_string(), |compare| compare.change(Some(node), None));
        }
        for (place, node) in new.iter().enumerate().filter(|(place, _)| from[*place].is_none()) {
            self.at(&place.to_string(), |compare| compare.change(None, Some(node)));
        }
        for (place, node) in new.iter().enumerate() {
            if let Some(one) = from[place] {
                self.at(&place.to_string(), |compare| compare.nodes(&old[one], node));
            }
        }
    }

    fn have_places<'n>(&self, mut names: impl Iterator<Item = &'n String>) -> bool {
        names.all(|name| self.has_place(name))
    }

    /// Whether a member's path is one that the contract takes.
    fn has_place(&self, name: &str) -> bool {
        let escaped = name.len() + name.matches(['~', '/']).count();
        self.path.len() + 1 + escaped <= MAX_PATH_BYTES && !name.contains(char::is_control)
    }

    fn at(&mut self, name: &str, then: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push('/');
        for char in name.chars() {
            match char {
                '~' => self.path.push_str("~0"),
                '/' => self.path.push_str("~1"),
                char => self.path.push(char),
            }
        }
        then(self);
        self.path.truncate(length);
    }

    fn change(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let shown = |node: Option<&Node>| node.map(|node| node.shown(self.secrets));
        let change = proto::Change { path: self.path.clone(), old_value: shown(old), new_value: shown(new) };
        self.changes.push(change);
    }
}

fn hidden(node: &Node) -> Node {
    match node {
        Node::Secret(_) => node.clone(),
        open => Node::Secret(Box::new(open.clone())),
    }
}

/// Which elements of two arrays are the same ones, edited or not: rising pairs of places, so that
/// the fewest others are left, and the most alike go together.
fn pair(old: &[Node], new: &[Node]) -> Vec<(usize, usize)> {
    let head = old.iter().zip(new).take_while(|(one, other)| one.same(other)).count();
    let rest = (&old[head..], &new[head..]);
    let tail = rest.0.iter().rev().zip(rest.1.iter().rev()).take_while(|(one, other)| one.same(other)).count();
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let middle = (&old[head..old_end], &new[head..new_end]);
    let mut pairs: Vec<_> = (0..head).map(|at| (at, at)).collect();
    if middle.0.len().saturating_mul(middle.1.len()) <= MAX_PAIRS {
        pairs.extend(fewest(middle.0, middle.1).into_iter().map(|(one, other)| (head + one, head + other)));
    } else {
        pairs.extend((head..old_end).zip(head..new_end));
    }
    pairs.extend((0..tail).map(|at| (old_end + at, new_end + at)));
    pairs
}

/// One change, in units of how unlike two elements may be.
const CHANGE: u64 = 1 << 16;

/// The edit distance of Wagner and Fischer, in which of as few changes those count that put like
/// to like.
fn fewest(old: &[Node], new: &[Node]) -> Vec<(usize, usize)> {
    let likes = (old.iter().map(Like::of).collect::<Vec<_>>(), new.iter().map(Like::of).collect::<Vec<_>>());
    let width = new.len() + 1;
    let mut costs = vec![0_u64; (old.len() + 1) * width];
    let edit = |one: usize, other: usize| match likes.0[one].digest == likes.1[other].digest {
        true if old[one].same(&new[other]) => 0,
        _ => CHANGE + likes.0[one].unlike(&likes.1[other]),
    };
    for one in 0..=old.len() {
        for other in 0..=new.len() {
            let at = one * width + other;
            costs[at] = match (one, other) {
                (0, count) | (count, 0) => count as u64 * CHANGE,
                _ => (costs[at - width - 1] + edit(one - 1, other - 1))
                    .min(costs[at - width] + CHANGE)
                    .min(costs[at - 1] + CHANGE),
            };
        }
    }
    let mut pairs = Vec::new();
    let (mut one, mut other) = (old.len(), new.len());
    while one > 0 && other > 0 {
        let at = one * width + other;
        if costs[at] == costs[at - width - 1] + edit(one - 1, other - 1) {
            (one, other) = (one - 1, other - 1);
            pairs.push((one, other));
        } else if costs[at] == costs[at - width] + CHANGE {
            one -= 1;
        } else {
            other -= 1;
        }
    }
    pairs.reverse();
    pairs
}

/// What says how much two elements are alike.
struct Like {
    digest: u64,
    /// Of an object: digests of its members, and what each counts.
    members: Option<BTreeMap<(u64, u64), u64>>,
}

impl Like {
    fn of(node: &Node) -> Self {
        let weight = |name: &str| if NAMES.contains(&name) { 4 } else { 1 };
        let members = |map: &BTreeMap<String, Node>| {
            let digest =
                |(name, node): (&String, &Node)| ((Node::Text(name.clone()).digest(), node.digest()), weight(name));
            map.iter().map(digest).collect()
        };
        let members = match node {
            Node::Map(map) => Some(members(map)),
            _ => None,
        };
        Self { digest: node.digest(), members }
    }

    /// From 0 to 255.
    fn unlike(&self, other: &Self) -> u64 {
        let (Some(one), Some(other)) = (&self.members, &other.members) else { return 255 };
        let all = one.values().sum::<u64>().max(other.values().sum());
        let shared: u64 = one.iter().filter(|(member, _)| other.contains_key(member)).map(|(_, weight)| weight).sum();
        255 - (255 * shared).checked_div(all).unwrap_or(255)
    }
}
