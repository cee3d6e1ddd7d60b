//! `dlrm-worker cache`: parses data once into a binary file of batches. The file and its bytes are
//! `dataset`'s.

use std::sync::atomic::{AtomicBool, Ordering};

use dataset::{Shuffle, Source};
use table::units::format_bytes;

use crate::cli::CacheArgs;
use crate::progress::Progress;
use crate::setup::settle_features;
use crate::{Error, Result};

/// Writes the cache that `args` ask for and returns the lines for a person. `stop` ends it early;
/// nothing is then written.
pub fn cache_command(args: &CacheArgs, stop: &AtomicBool) -> Result<String> {
    if let Source::Cache { .. } = args.data.data {
        let data = &args.data.data;
        return Err(Error::Input(format!("--data {data}: expected anything but a cache")));
    }
    let mut read = settle_features(&args.data, &args.features, args.mini_batch_size)?.read;
    read.batches_max = args.data.num_batches;
    let (window_rows, seed) = (args.shuffle_window, args.seed);
    read.shuffle = (window_rows > 0).then_some(Shuffle { window_rows, seed });
    let mut progress = Progress::new("cache", None);
    let mut shown = 0;
    let written = dataset::write_cache(&args.data.source()?, &read, &args.output, &mut |rows| {
        progress.advance(rows - shown, String::new);
        shown = rows;
        !stop.load(Ordering::Relaxed)
    })?;
    progress.finish("");
    let path = args.output.display();
    Ok(match written {
        Some(size) => format!(
            "wrote {} rows in {} batches of {} to {path}: {}, {} distinct keys, {} bad rows left \
             out\n",
            size.rows,
            size.batches,
            args.mini_batch_size,
            format_bytes(size.file_bytes),
            size.distinct_keys,
            size.rows_skipped
        ),
        None => format!("interrupted: {path} was not written\n"),
    })
}
