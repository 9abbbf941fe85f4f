//! Bounds of what the core keeps, each with its reason.

/// Live controllers: one a store, and an installation has a handful. No more than a lease can name, or
/// the `stop-after` work of the others would end on healthy nodes.
pub const CONTROLLERS: usize = pronto_payloads::limits::OWNERS;
/// Owners whose highest epoch is remembered after they have gone. More would be an attack by a
/// holder of controller certificates; the least recently added is then forgotten.
pub const REMEMBERED_OWNERS: usize = 1024;
/// Commands forwarded to one node and not yet answered: a burst of STOPs for all that one node
/// can hold, at some 50 bytes each.
pub const COMMANDS_PER_NODE: usize = 16 * 1024;
/// Streams through one launcher's bulk session.
pub const STREAMS_PER_NODE: usize = 64;
/// Streams of one controller.
pub const STREAMS_PER_CONTROLLER: usize = 1024;
/// Frames of streams that one bulk session may send in a second without spending credit: thousands of
/// short streams, and credits for more bytes than one thread can relay. They take it some 20 ms.
pub const UNCREDITED_PER_S: u32 = 20_000;
/// STREAM_OPENs that wait for one launcher's bulk session: no more than it could have.
pub const HELD_OPENS_PER_NODE: usize = STREAMS_PER_NODE;
/// How long a STREAM_OPEN waits for the launcher to bring up its bulk session.
pub const HELD_OPEN_MS: u64 = 5_000;
/// A launcher without a bulk session is asked for one so often at most: its dial may have failed.
pub const OPEN_BULK_AGAIN_MS: u64 = 1_000;
/// Placements wait for so many of the expected nodes after a start, in percent ...
pub const WARM_NODES_PERCENT: u64 = 90;
/// Failures of a node's own in a row after which it is left alone for a while: one may be bad
/// luck, two a coincidence.
pub const FAULTS_BEFORE_BACK_OFF: u32 = 3;
/// The first such while; it doubles with each further failure ...
pub const BACK_OFF_FIRST_MS: u64 = 1_000;
/// ... up to this, so that a repaired node is found out about within minutes.
pub const BACK_OFF_MAX_MS: u64 = 300_000;
/// An end that was seen longer ago than this before its report was sent is a repetition.
pub const FRESH_END_NS: u64 = 1_000_000_000;
/// GRANTs closer together than this come out of one backlog and are not counted anew; see
/// `leases`.
pub const GRANT_SPACING_MS: u64 = 200;
/// The longest grant that is believed, so that a controller's slip can't void a fence for long.
pub const GRANT_MAX_MS: u64 = 60_000;
/// Pages of a node list that one controller gets in one turn: a page of 256 nodes takes about a
/// millisecond to make, and placement should not wait for more.
pub const PAGES_PER_TURN: usize = 1;
/// The highest term, and the highest epoch of an owner, that is believed of few launchers: they count
/// activations and starts, and one that lies can't bring them to their end. A store that was restored goes
/// on above it, where most of the launchers are believed, and at least two.
pub const BELIEVED_OF_FEW: u64 = 1 << 32;
/// Nobody comes here by counting: it is a lie, however many tell it.
pub const BELIEVED_OF_MOST: u64 = 1 << 40;
/// Below this many launchers one is believed what epoch of an owner it has seen; from then on two must
/// say so, or one that lies could stop a controller for good.
pub const LAUNCHERS_OF_ONE_WORD: usize = 3;
/// Statistics that a launcher may miss before nothing more is placed on it.
pub const MISSED_STATS: u64 = 3;
/// Who has not sent statistics yet, or never does, asks for its lease each second all the same: three
/// of these.
pub const MISSED_STATUSES_MS: u64 = 3_000;
/// Nodes looked at for statistics in one tick at most; they take a few microseconds each.
pub const STATS_NODES_PER_TICK: usize = 1024;
