use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::delivery::BYTES_MAX;
use super::store::{Entry, MemoryStore, Store};
use super::*;

fn outbox(epoch: u64, capacity: usize) -> Outbox {
    Outbox::new(epoch, capacity, Box::new(MemoryStore::default()))
}

fn push(outbox: &mut Outbox) -> u64 {
    outbox.push("t".into(), Duration::ZERO, |epoch, seq| {
        Bytes::from(format!("{epoch}/{seq}"))
    })
}

/// Sends every event there is to send, and returns their sequence numbers in order.
fn sent(outbox: &mut Outbox) -> Vec<u64> {
    std::iter::from_fn(|| outbox.next_to_send())
        .filter_map(|next| {
            if let Next::Event(entry) = next {
                Some(entry.seq)
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn an_event_is_removed_only_when_acknowledged() {
    let mut outbox = outbox(7, 10);
    assert_eq!((push(&mut outbox), push(&mut outbox)), (1, 2));
    assert_eq!(sent(&mut outbox), [1, 2]);
    assert_eq!((outbox.queued(), outbox.next_to_send()), (2, None));
    outbox.acked(1, Duration::ZERO);
    outbox.acked(1, Duration::ZERO);
    assert_eq!(
        outbox.counts(),
        Counts {
            produced: 2,
            published: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn reports_the_queued_bytes_and_the_oldest_age() {
    let mut outbox = outbox(7, 10);
    assert_eq!(
        (outbox.queued_bytes(), outbox.oldest_age(Duration::ZERO)),
        (0, None)
    );
    outbox.push("t".into(), Duration::from_secs(3), |_, _| "12345".into());
    outbox.push("t".into(), Duration::from_secs(8), |_, _| "123".into());
    assert_eq!(
        (
            outbox.queued_bytes(),
            outbox.oldest_age(Duration::from_secs(9))
        ),
        (8, Some(Duration::from_secs(6)))
    );
    outbox.acked(1, Duration::from_secs(9));
    assert_eq!(
        (
            outbox.queued_bytes(),
            outbox.oldest_age(Duration::from_secs(9))
        ),
        (3, Some(Duration::from_secs(1)))
    );
}

#[test]
fn large_events_reach_the_byte_limit_before_the_capacity() {
    let mut outbox = outbox(7, 10_000);
    for _ in 0..3 {
        outbox.push("t".into(), Duration::ZERO, |_, _| {
            vec![b'x'; BYTES_MAX / 2 - 1].into()
        });
    }
    assert_eq!((outbox.queued(), outbox.counts().dropped), (2, 1));
    assert!(outbox.queued_bytes() <= BYTES_MAX);
}

#[test]
fn events_acknowledged_just_before_a_disconnect_are_sent_again() {
    let mut outbox = outbox(7, 10);
    for _ in 0..4 {
        push(&mut outbox);
    }
    sent(&mut outbox);
    outbox.acked(1, Duration::from_secs(0));
    outbox.acked(2, Duration::from_secs(7));
    outbox.acked(3, Duration::from_secs(9));
    outbox.disconnected();
    assert_eq!(sent(&mut outbox), [2, 3, 4]);
    outbox.acked(3, Duration::from_secs(100));
    outbox.disconnected();
    assert_eq!(sent(&mut outbox), [2, 3, 4]);
    for seq in 2..=4 {
        outbox.acked(seq, Duration::from_secs(101));
    }
    assert!(outbox.is_empty());
    assert_eq!(
        outbox.counts(),
        Counts {
            produced: 4,
            published: 4,
            dropped: 0,
            repeated: 3
        }
    );
}

#[test]
fn the_oldest_event_is_dropped_and_declared_as_a_gap() {
    let mut outbox = outbox(7, 2);
    for _ in 0..5 {
        push(&mut outbox);
    }
    assert_eq!(
        outbox.next_to_send(),
        Some(Next::Gap(
            1,
            Gap {
                from_seq: 1,
                to_seq: 3,
                count: 3,
                reason: GapReason::Size,
            }
        ))
    );
    assert_eq!(sent(&mut outbox), [4, 5]);
    // The gap was already sent, so the next drop is another gap.
    push(&mut outbox);
    assert_eq!(
        outbox.next_to_send(),
        Some(Next::Gap(
            2,
            Gap {
                from_seq: 4,
                to_seq: 4,
                count: 1,
                reason: GapReason::Size,
            }
        ))
    );
    outbox.gap_acked(1, Duration::ZERO);
    outbox.disconnected();
    assert_eq!(
        outbox.next_to_send(),
        Some(Next::Gap(
            1,
            Gap {
                from_seq: 1,
                to_seq: 3,
                count: 3,
                reason: GapReason::Size,
            }
        ))
    );
}

/// A store that keeps nothing from some seq on, or loses what it kept.
struct BrokenStore {
    memory: MemoryStore,
    full_from: u64,
    loses: u64,
}

impl Store for BrokenStore {
    fn put(&mut self, entry: Entry) -> std::io::Result<()> {
        if entry.seq >= self.full_from {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.memory.put(entry)
    }

    fn get(&self, seq: u64) -> Option<Entry> {
        (seq != self.loses).then(|| self.memory.get(seq)).flatten()
    }

    fn forget(&mut self, seq: u64) {
        self.memory.forget(seq);
    }
}

#[test]
fn what_the_store_cannot_keep_is_declared_lost() {
    let store = BrokenStore {
        memory: MemoryStore::default(),
        full_from: 3,
        loses: 1,
    };
    let mut outbox = Outbox::new(7, 10, Box::new(store));
    assert_eq!([(); 3].map(|()| push(&mut outbox)), [1, 2, 3]);
    let mut lost = Vec::new();
    let mut sent = Vec::new();
    while let Some(next) = outbox.next_to_send() {
        match next {
            Next::Gap(_, gap) => lost.push((gap.from_seq, gap.to_seq, gap.count, gap.reason)),
            Next::Event(entry) => sent.push(entry.seq),
        }
    }
    assert_eq!(sent, [2]);
    assert_eq!(
        lost,
        [(3, 3, 1, GapReason::Lost), (1, 1, 1, GapReason::Lost)]
    );
    assert_eq!(outbox.counts().dropped, 2);
}

#[test]
fn a_gap_that_is_refused_is_not_sent_again() {
    let mut outbox = outbox(7, 1);
    push(&mut outbox);
    push(&mut outbox);
    let Some(Next::Gap(id, _)) = outbox.next_to_send() else {
        panic!("no gap");
    };
    outbox.gap_refused(id);
    outbox.disconnected();
    assert_eq!(sent(&mut outbox), [2]);
}

#[test]
fn a_repeat_that_is_refused_is_declared() {
    let mut outbox = outbox(7, 10);
    push(&mut outbox);
    assert_eq!(sent(&mut outbox), [1]);
    outbox.acked(1, Duration::ZERO);
    outbox.disconnected();
    assert_eq!(sent(&mut outbox), [1], "the broker may not have saved it");
    outbox.refused(1);
    let Some(Next::Gap(_, gap)) = outbox.next_to_send() else {
        panic!("it may be lost, and nothing says so");
    };
    assert_eq!(
        (gap.from_seq, gap.to_seq, gap.count, gap.reason),
        (1, 1, 1, GapReason::Refused)
    );
    assert_eq!((outbox.counts().published, outbox.counts().dropped), (1, 0));
}

#[test]
fn a_refused_event_does_not_block_the_others() {
    let mut outbox = outbox(7, 10);
    push(&mut outbox);
    push(&mut outbox);
    sent(&mut outbox);
    outbox.refused(1);
    assert_eq!(
        outbox.next_to_send(),
        Some(Next::Gap(
            1,
            Gap {
                from_seq: 1,
                to_seq: 1,
                count: 1,
                reason: GapReason::Refused,
            }
        ))
    );
    assert_eq!(
        outbox.counts(),
        Counts {
            produced: 2,
            dropped: 1,
            ..Counts::default()
        }
    );
}

#[derive(Debug, Clone)]
enum OutboxAct {
    Push,
    Send,
    /// The broker received the next packet, and its acknowledgement arrived.
    Ack,
    /// The connection ends; of the events not saved yet the broker keeps this share.
    Lose {
        kept_percent: usize,
    },
    Wait {
        ms: u64,
    },
}

fn act() -> impl Strategy<Value = OutboxAct> {
    prop_oneof![
        4 => Just(OutboxAct::Push),
        4 => Just(OutboxAct::Send),
        3 => Just(OutboxAct::Ack),
        1 => (0_usize..=100).prop_map(|kept_percent| OutboxAct::Lose { kept_percent }),
        1 => (0_u64..9_000).prop_map(|ms| OutboxAct::Wait { ms }),
    ]
}

/// What a broker received; it has saved the events that it acknowledged at least a second ago.
#[derive(Default)]
struct Broker {
    received: BTreeSet<u64>,
    declared: BTreeSet<u64>,
    unsaved: Vec<(Duration, u64)>,
}

proptest! {
    /// Against a broker that loses what it had not saved: in the end every event was received or
    /// declared as part of a gap.
    #[test]
    fn no_event_is_missing_without_a_declared_gap(acts in prop::collection::vec(act(), 1..300), capacity in 1_usize..20) {
        let mut outbox = outbox(1, capacity);
        let mut broker = Broker::default();
        let mut wire: VecDeque<Next> = VecDeque::new();
        let mut now = Duration::ZERO;
        let receive = |outbox: &mut Outbox, broker: &mut Broker, next: Next, now: Duration| match next {
            Next::Event(entry) => {
                broker.received.insert(entry.seq);
                broker.unsaved.push((now, entry.seq));
                outbox.acked(entry.seq, now);
            }
            Next::Gap(id, gap) => {
                broker.declared.extend(gap.from_seq..=gap.to_seq);
                outbox.gap_acked(id, now);
            }
        };
        for act in acts {
            broker.unsaved.retain(|(at, _)| now - *at < Duration::from_secs(1));
            match act {
                OutboxAct::Push => { push(&mut outbox); }
                OutboxAct::Send => wire.extend(outbox.next_to_send()),
                OutboxAct::Ack => if let Some(next) = wire.pop_front() { receive(&mut outbox, &mut broker, next, now) },
                OutboxAct::Lose { kept_percent } => {
                    wire.clear();
                    let kept = broker.unsaved.len() * kept_percent / 100;
                    for (_, seq) in broker.unsaved.drain(..).skip(kept) { broker.received.remove(&seq); }
                    outbox.disconnected();
                }
                OutboxAct::Wait { ms } => now += Duration::from_millis(ms),
            }
            let counts = outbox.counts();
            prop_assert_eq!(counts.produced, counts.published + counts.dropped + outbox.queued() as u64);
            prop_assert!(outbox.queued() <= capacity);
        }
        wire.clear();
        outbox.disconnected();
        let mut last = 0;
        while let Some(next) = outbox.next_to_send() {
            if let Next::Event(entry) = &next {
                prop_assert!(entry.seq > last, "out of order");
                last = entry.seq;
            }
            receive(&mut outbox, &mut broker, next, now);
        }
        prop_assert!(outbox.is_empty());
        let accounted_for: BTreeSet<u64> = broker.received.union(&broker.declared).copied().collect();
        prop_assert_eq!(accounted_for, (1..=outbox.counts().produced).collect::<BTreeSet<_>>());
    }
}
