//! Order, probes, wake-ups and barriers.

use super::*;

fn key(cpu_millis: u32) -> Arc<ClassKey> {
    Arc::new(ClassKey {
        demand: Demand {
            cpu_millis,
            ..Demand::default()
        },
        constraints: Vec::new(),
        runtime: Runtime::Sim,
    })
}

fn full(generation: u64) -> LastRefusal {
    LastRefusal {
        refusal: Refusal::CloudFull,
        generation: Generation(generation),
    }
}

#[test]
fn priority_then_tenants_in_turn_then_age() {
    let mut queue = Queue::default();
    let class = queue.class(&key(1), 6);
    for (priority, tenant, seq) in [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 4), (5, 1, 5)] {
        queue.push(priority, tenant, class, seq, false);
    }
    let order: Vec<u64> = std::iter::from_fn(|| queue.pick())
        .map(|(seq, _)| seq)
        .collect();
    assert_eq!(order, [5, 1, 4, 2, 3]);
    assert_eq!(queue.waiting(), 0);
}

#[test]
fn a_refused_class_has_one_probe_whose_window_doubles() {
    let mut queue = Queue::default();
    let class = queue.class(&key(1), 100);
    for seq in 1..=100 {
        queue.push(0, 0, class, seq, false);
    }
    let first: Vec<u64> = std::iter::from_fn(|| queue.pick())
        .map(|(seq, _)| seq)
        .collect();
    assert_eq!(first.len(), 100);
    for &seq in &first {
        queue.refused(class, seq, 0, full(7));
        queue.push(0, 0, class, seq, true);
    }
    assert_eq!(queue.pick(), None);
    queue.capacity(Generation(7));
    assert_eq!(queue.pick(), None, "the refusal had seen that generation");
    queue.capacity(Generation(8));
    assert_eq!(queue.pick(), Some((1, class)));
    assert_eq!(queue.pick(), None, "one probe");
    queue.placed(class, 1);
    assert_eq!(queue.pick(), Some((2, class)));
    assert_eq!(queue.pick(), Some((3, class)));
    assert_eq!(queue.pick(), None, "a window of two");
    queue.refused(class, 2, 0, full(8));
    queue.push(0, 0, class, 2, true);
    queue.placed(class, 3);
    assert_eq!(
        queue.pick(),
        Some((2, class)),
        "a success reopens the class"
    );
}

#[test]
fn a_refusal_that_a_wake_up_has_overtaken_does_not_block() {
    let mut queue = Queue::default();
    let class = queue.class(&key(1), 1);
    queue.push(0, 0, class, 1, false);
    assert!(queue.pick().is_some());
    queue.capacity(Generation(9));
    queue.refused(class, 1, 0, full(8));
    queue.push(0, 0, class, 1, true);
    assert_eq!(queue.pick(), Some((1, class)));
}

#[test]
fn many_classes_probe_a_few_at_a_time() {
    let mut queue = Queue::default();
    let mut classes = Vec::new();
    for seq in 1..=1000 {
        let class = queue.class(&key(u32::try_from(seq).unwrap()), 1);
        classes.push(class);
        queue.push(0, 0, class, seq, false);
    }
    while let Some((seq, class)) = queue.pick() {
        queue.refused(class, seq, 0, full(1));
        queue.push(0, 0, class, seq, true);
    }
    queue.capacity(Generation(2));
    let probes: Vec<_> = std::iter::from_fn(|| queue.pick()).collect();
    assert_eq!(probes.len(), MAX_PROBES as usize);
    let (seq, class) = probes[0];
    queue.refused(class, seq, 0, full(2));
    queue.push(0, 0, class, seq, true);
    assert_eq!(
        queue.pick().map(|(seq, _)| seq),
        Some(65),
        "the next has its turn"
    );
    for class in classes {
        queue.leave_class(class);
    }
    assert_eq!((queue.waiting(), queue.class_count()), (0, 0));
}

#[test]
fn nobody_younger_passes_a_barrier_but_the_higher() {
    let mut queue = Queue::default();
    let large = queue.class(&key(9000), 1);
    let small = queue.class(&key(1), 2);
    queue.barrier = Some(Barrier {
        priority: 0,
        seq: 1,
        class: large,
        until_ns: i64::MAX,
    });
    queue.push(0, 0, small, 2, false);
    assert_eq!(queue.pick(), None);
    queue.push(1, 0, small, 3, false);
    assert_eq!(queue.pick(), Some((3, small)));
    queue.placed(large, 1);
    assert_eq!(queue.pick(), Some((2, small)));
}
