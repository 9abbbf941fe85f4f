//! Labels of nodes as small numbers, and how a query for one is narrowed down.
//!
//! A label that few nodes have (a hostname, one special machine) keeps a list of them, and a query
//! for it looks at that list alone. A label that becomes common gets a bit in the summaries of the
//! tree; bits are shared when there are more common labels than bits, so a bit only narrows the
//! search and the node's own labels decide.
//!
//! Only nodes add labels, so a tenant's constraints can't make this grow; a label that no node has
//! any more is forgotten.

use super::summary::Features;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// A label (key and value) of at least one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LabelId(u32);

/// Nodes up to which a label keeps a list of them: a look at that many costs less than a search
/// through a tree whose bits can't tell them apart.
const RARE_NODES: usize = 64;
/// The first bit for labels; those before it are fixed, see [`super::query`].
pub(super) const FIRST_LABEL_BIT: u8 = 8;
/// Bits for labels: the rest of the features.
const LABEL_BITS: usize = Features::BITS as usize - FIRST_LABEL_BIT as usize;

#[derive(Clone, Debug)]
enum Spread {
    /// The slots that have it, ascending.
    Rare(SmallVec<[u32; 4]>),
    Common {
        bit: u8,
        nodes: usize,
    },
}

#[derive(Clone, Debug)]
struct Entry {
    key: Box<str>,
    value: Box<str>,
    spread: Spread,
}

/// Where the nodes with a label are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Where<'a> {
    /// On exactly these slots, ascending.
    At(&'a [u32]),
    /// Among those with this bit.
    Bit(u8),
}

/// All labels of all nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels {
    ids: FxHashMap<Box<str>, FxHashMap<Box<str>, LabelId>>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<LabelId>,
    /// How many labels share each bit.
    shared: [u32; LABEL_BITS],
}

impl Labels {
    pub(super) fn find(&self, key: &str, value: &str) -> Option<LabelId> {
        self.ids.get(key)?.get(value).copied()
    }

    fn entry(&self, label: LabelId) -> &Entry {
        self.entries[label.0 as usize]
            .as_ref()
            .expect("an id is handed out only while some node has the label")
    }

    pub(super) fn whereabouts(&self, label: LabelId) -> Where<'_> {
        match &self.entry(label).spread {
            Spread::Rare(slots) => Where::At(slots),
            Spread::Common { bit, .. } => Where::Bit(*bit),
        }
    }

    /// The feature bits of a node with these labels.
    pub(super) fn features(&self, labels: &[LabelId]) -> Features {
        let mut features = 0;
        for &label in labels {
            if let Spread::Common { bit, .. } = self.entry(label).spread {
                features |= 1 << bit;
            }
        }
        features
    }

    /// A node has this label. If that makes the label common, returns the other slots that have
    /// it: their summaries have a bit more now.
    #[must_use]
    pub(super) fn add(&mut self, key: &str, value: &str, slot: u32) -> (LabelId, Vec<u32>) {
        let label = self
            .find(key, value)
            .unwrap_or_else(|| self.intern(key, value));
        let entry = self.entries[label.0 as usize]
            .as_mut()
            .expect("found or made in the line above");
        match &mut entry.spread {
            Spread::Common { nodes, .. } => *nodes += 1,
            Spread::Rare(slots) if slots.len() < RARE_NODES => {
                if let Err(at) = slots.binary_search(&slot) {
                    slots.insert(at, slot);
                }
            }
            Spread::Rare(slots) => {
                let others = slots.to_vec();
                let least = (0..LABEL_BITS).min_by_key(|&bit| self.shared[bit]);
                let index = least.unwrap_or(0);
                self.shared[index] += 1;
                let bit = FIRST_LABEL_BIT + u8::try_from(index).unwrap_or(0);
                entry.spread = Spread::Common {
                    bit,
                    nodes: others.len() + 1,
                };
                return (label, others);
            }
        }
        (label, Vec::new())
    }

    fn intern(&mut self, key: &str, value: &str) -> LabelId {
        let entry = Entry {
            key: key.into(),
            value: value.into(),
            spread: Spread::Rare(SmallVec::new()),
        };
        let label = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            LabelId(u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX))
        });
        self.entries[label.0 as usize] = Some(entry);
        let values = self.ids.entry(key.into()).or_default();
        values.insert(value.into(), label);
        label
    }

    /// The node in this slot is gone.
    pub(super) fn remove(&mut self, label: LabelId, slot: u32) {
        let Some(entry) = &mut self.entries[label.0 as usize] else {
            return;
        };
        let gone = match &mut entry.spread {
            Spread::Rare(slots) => {
                slots.retain(|has| *has != slot);
                slots.is_empty()
            }
            Spread::Common { bit, nodes } => {
                *nodes -= 1;
                if *nodes == 0 {
                    self.shared[usize::from(*bit - FIRST_LABEL_BIT)] -= 1;
                }
                *nodes == 0
            }
        };
        if !gone {
            return;
        }
        if let Some(values) = self.ids.get_mut(&entry.key) {
            values.remove(&entry.value);
            if values.is_empty() {
                let key = entry.key.clone();
                self.ids.remove(&key);
            }
        }
        self.entries[label.0 as usize] = None;
        self.vacant.push(label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_label_gets_a_bit_and_a_rare_one_a_list() {
        let mut labels = Labels::default();
        for slot in 0..64 {
            let (_, promoted) = labels.add("zone", "a", slot);
            assert!(promoted.is_empty());
        }
        let zone = labels.find("zone", "a").expect("known");
        assert!(matches!(labels.whereabouts(zone), Where::At(slots) if slots.len() == 64));
        let (_, promoted) = labels.add("zone", "a", 64);
        assert_eq!(
            promoted.len(),
            64,
            "the nodes before the one that made it common"
        );
        assert!(matches!(
            labels.whereabouts(zone),
            Where::Bit(FIRST_LABEL_BIT)
        ));
        assert_eq!(labels.features(&[zone]), 1 << 8);
        assert!(labels.find("zone", "b").is_none());
    }

    #[test]
    fn a_label_without_nodes_is_forgotten() {
        let mut labels = Labels::default();
        for slot in 0..70 {
            let _ = labels.add("zone", "a", slot);
        }
        let (host, _) = labels.add("hostname", "n7", 7);
        let zone = labels.find("zone", "a").expect("known");
        labels.remove(host, 7);
        for slot in 0..70 {
            labels.remove(zone, slot);
        }
        assert!(labels.find("zone", "a").is_none());
        assert!(labels.ids.is_empty());
        assert_eq!(labels.vacant.len(), 2);
        assert_eq!(labels.shared, [0; LABEL_BITS]);
        let (again, _) = labels.add("zone", "c", 1);
        assert!(again == zone || again == host, "ids are used again");
    }
}
