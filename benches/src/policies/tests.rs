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
