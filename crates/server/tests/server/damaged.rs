//! A record that the disk damaged: its row fails alone, in a session of this process and over the
//! wire, and no step that has it changes a row.

use std::path::Path;

use table::{KeyBatch, Limits, Optimizer, RowStatus, Step, TableId};
use wire::{Code, Session};

use crate::{batch, bits, connect, embedded, look, spec, start, tcp, toml};

/// A row for each block of the file, so that a damaged block is one row.
const DIM: usize = 1000;
const KEYS: [u64; 5] = [2, 3, 5, 7, 11];
const DAMAGED: usize = 2; // among the keys

fn floats(key: u64) -> f32 {
    key as f32 + 0.625
}

/// Flips a bit of the row of this key, in the one file that has it.
fn damage(rows: &Path, key: u64) {
    let pattern = floats(key).to_le_bytes().repeat(64);
    let mut damaged = 0;
    for entry in std::fs::read_dir(rows).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "sst") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(pattern.len()).position(|window| window == pattern);
        if let Some(at) = found {
            bytes[at + 17] ^= 4;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1, "files with the row of key {key}");
}

fn check(session: &dyn Session, first: Step) {
    let keys: KeyBatch = batch(&[(0, &KEYS)]);
    let answers = |rows: &[f32], statuses: &[RowStatus]| {
        for (i, row) in rows.chunks_exact(DIM).enumerate() {
            if i == DAMAGED {
                assert_eq!(statuses[i], RowStatus::Failed);
                assert!(row.iter().all(|x| x.is_nan()), "nothing of it may be used");
            } else {
                assert!(matches!(statuses[i], RowStatus::Ssd | RowStatus::Host), "{statuses:?}");
                assert!(row.iter().all(|x| *x == floats(KEYS[i])), "key {}", KEYS[i]);
            }
        }
    };
    let (rows, statuses) = look(session, &keys, KEYS.len() * DIM);
    answers(&rows, &statuses);

    session.stage(first, &keys).unwrap();
    let (mut rows, mut statuses) = (rows, statuses);
    rows.fill(0.0);
    session.pull_with_statuses(first, &mut rows, &mut statuses).unwrap();
    answers(&rows, &statuses);
    // who asks for no statuses would not know
    let refused = session.pull(first, &mut rows).unwrap_err();
    assert_eq!(refused.code(), Code::Corrupt, "{refused}");
    assert!(refused.message().contains("checksum"), "{refused}");
    let gradients = vec![1.0; rows.len()];
    let pushed = session.push(first, &gradients, 1.0).and_then(|()| session.settle());
    assert!(pushed.unwrap_err().message().contains("checksum"));
    let _ = session.release(first); // a client has forgotten it with the push
    session.settle().unwrap();

    // the others can be trained
    let others: Vec<u64> = (0..KEYS.len()).filter(|i| *i != DAMAGED).map(|i| KEYS[i]).collect();
    let others = batch(&[(0, &others)]);
    let (before, _) = look(session, &others, others.len() * DIM);
    let step = Step(first.0 + 1);
    session.stage(step, &others).unwrap();
    let mut rows = vec![0.0; before.len()];
    session.pull(step, &mut rows).unwrap();
    assert_eq!(bits(&rows), bits(&before));
    session.push(step, &vec![0.0; rows.len()], 1.0).unwrap();
    session.settle().unwrap();
    assert!(session.status().unwrap().totals().failed >= 2);
}

#[test]
fn a_damaged_row_fails_alone_embedded_and_over_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("rows");
    let made = embedded(&store, Limits::DEFAULT);
    let table = made.session().create_table(&spec("t", DIM as u32, Optimizer::Sgd)).unwrap();
    assert_eq!(table, TableId(0));
    let rows: Vec<f32> = KEYS.iter().flat_map(|key| [floats(*key); DIM]).collect();
    made.session().assign(&batch(&[(0, &KEYS)]), &rows).unwrap();
    made.close().unwrap();
    damage(&store.join("rows"), KEYS[DAMAGED]);

    let again = embedded(&store, Limits::DEFAULT);
    check(&*again.session(), Step(0));
    again.close().unwrap();

    let server = start(toml(dir.path()));
    let session = connect(&tcp(&server));
    check(&session, Step(0));
    drop(session);
    server.stop().unwrap();
}
