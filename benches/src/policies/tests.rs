//! The references against examples worked by hand, and against figures that others published.

use super::{Lfu, Lru, Min, Policy, S3Fifo, StaticTop, Swept, WTinyLfu, hits};

const LOOP: [u32; 12] = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2];

#[test]
fn a_loop_one_larger_than_the_cache_never_hits_with_lru_and_half_of_the_time_with_min() {
    assert_eq!(hits(&mut Lru::new(2), &LOOP), 0);
    // after the three first touches MIN hits every other time: at 3, 5, 7, 9 and 11
    assert_eq!(hits(&mut Min::new(2, &LOOP), &LOOP), 5);
    assert_eq!(hits(&mut Lru::new(3), &LOOP), 9);
}

#[test]
fn what_is_frequent_stays_with_lfu_and_with_the_top() {
    // 0 and 1 are frequent; 2 to 5 pass by
    let keys = [0, 1, 0, 1, 0, 1, 2, 3, 4, 5, 0, 1];
    assert_eq!(hits(&mut Lfu::new(3), &keys), 6);
    assert_eq!(hits(&mut Lru::new(3), &keys), 4);
    // the top two are there but for their first touches
    assert_eq!(hits(&mut StaticTop::new(2, &keys), &keys), 6);
}

#[test]
fn nobody_beats_min_and_all_fit_where_all_fit() {
    let mut x = 1_u64;
    let keys: Vec<u32> = (0..20_000)
        .map(|_| {
            x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let unit = (x >> 40) as f64 / (1 << 24) as f64;
            (500.0 * unit * unit * unit) as u32
        })
        .collect();
    let mut numbers = std::collections::HashMap::new();
    let keys: Vec<u32> = keys
        .into_iter()
        .map(|key| {
            let next = numbers.len() as u32;
            *numbers.entry(key).or_insert(next)
        })
        .collect();
    for rows in [5, 50, 200] {
        let best = hits(&mut Min::new(rows, &keys), &keys);
        let others: [Box<dyn Policy>; 5] = [
            Box::new(Lru::new(rows)),
            Box::new(Lfu::new(rows)),
            Box::new(S3Fifo::new(rows)),
            Box::new(WTinyLfu::climbing(rows)),
            Box::new(Swept::new(rows)),
        ];
        for mut other in others {
            let found = hits(other.as_mut(), &keys);
            assert!(found <= best && 4 * found > best, "{found} of {best} at {rows}");
        }
    }
    let all = numbers.len();
    let fits = (keys.len() - all) as u64;
    assert_eq!(hits(&mut Lru::new(all), &keys), fits);
    assert_eq!(hits(&mut Swept::new(all), &keys), fits);
}

#[test]
fn s3_fifo_takes_a_ghost_into_its_main_queue_and_what_was_used_twice_again() {
    // room for ten, nothing evicted yet; 10 pushes 0 out, which comes back into the main queue
    let mut policy = S3Fifo::new(10);
    hits(&mut policy, &[0, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(hits(&mut policy, &[10, 0]), 0);
    // a scan of the small queue: 0 stays as a ghost, 2 as used twice again; 3 was used once again
    hits(&mut policy, &(20..60).collect::<Vec<_>>());
    assert_eq!([0, 2, 3].map(|key| policy.access(key)), [true, true, false]);
}

#[test]
fn w_tiny_lfu_keeps_what_is_frequent_from_a_scan() {
    let hot: Vec<u32> = (0..50).collect();
    let scan: Vec<u32> = (1000..1300).collect();
    let mut policy = WTinyLfu::new(100);
    (0..4).for_each(|_| assert!(hits(&mut policy, &hot) <= 50));
    hits(&mut policy, &scan);
    let kept = hits(&mut policy, &hot);
    assert!(kept >= 48, "{kept} of 50 outlive a scan");
    let mut lru = Lru::new(100);
    hits(&mut lru, &hot);
    hits(&mut lru, &scan);
    assert_eq!(hits(&mut lru, &hot), 0);
}

#[test]
fn the_textbook_example_of_three_frames_has_nine_faults_with_min_and_twelve_with_lru() {
    let keys = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
    assert_eq!(hits(&mut Min::new(3, &keys), &keys), 20 - 9);
    assert_eq!(hits(&mut Lru::new(3), &keys), 20 - 12);
}

#[test]
fn staging_counts_rows_that_left_and_came_back() {
    let batches = super::Batches::new(vec![0, 1, 2, 0], vec![1, 2, 3, 4], 3);
    let rereads = |rows, foresight| {
        let mut staged = super::Staged::new(rows, 1, foresight);
        staged.run(&batches);
        staged.rereads
    };
    for foresight in [super::Foresight::Batch, super::Foresight::NextUses] {
        assert_eq!(rereads(3, foresight), 0, "all fit");
        assert_eq!(rereads(1, foresight), 1);
    }
    // with next uses, 1 leaves for 2, for it is not used again
    assert_eq!(rereads(2, super::Foresight::NextUses), 0);
}
