//! The kernels' source and how each is launched. It launches nothing and needs no device.

use crate::Precision;

/// A source that is compiled for the device at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name, for the compiler's messages.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
    /// The kernels in it.
    pub kernels: &'static [&'static str],
}

/// Files one after the other, with their own names and lines in the compiler's messages: a kernel's
/// source behind what it has in common with others.
macro_rules! texts {
    ($($file:literal),+) => {
        concat!($("#line 1 \"", $file, "\"\n", include_str!(concat!("../kernels/", $file))),+)
    };
}

/// Rows by their addresses: gather, update, sum of gradients.
pub const ROWS: Source = Source {
    name: "rows.cu",
    text: texts!("rules.cuh", "rows.cu"),
    kernels: &[
        "gather_rows_by_four",
        "gather_rows",
        "find_not_finite",
        "sum_gradients",
        "update_sgd",
        "update_adagrad",
        "update_rowwise_adagrad",
        "update_adam",
    ],
};

/// Rows of several tables in one launch, whatever their lengths and rules.
pub const TABLES: Source = Source {
    name: "tables.cu",
    text: texts!("pieces.cuh", "rules.cuh", "tables.cu"),
    kernels: &["gather_tables", "update_tables"],
};

/// Between the matrix products: pooling and the dot interaction, both ways.
pub const NETWORK: Source = Source {
    name: "network.cu",
    text: include_str!("../kernels/network.cu"),
    kernels: &[
        "pool_rows",
        "pool_rows_by_four",
        "sum_weighted_gradients",
        "interact",
        "interact_backward",
    ],
};

/// The dot interaction by tensor cores, both ways.
pub const TENSOR: Source = Source {
    name: "tensor.cu",
    text: include_str!("../kernels/tensor.cu"),
    kernels: &[
        "interact_tf32",
        "interact_brains",
        "interact_backward_tf32",
        "interact_backward_brains",
    ],
};

/// The table of a cache: which key has which slot; and rows that move in and out.
pub const CACHE: Source = Source {
    name: "cache.cu",
    text: texts!("pieces.cuh", "cache.cu"),
    kernels: &["find_slots", "insert_slots", "clear_slots", "move_rows"],
};

/// Around the matrix products of a step: bias and ReLU, the loss, sums of gradients, updates.
pub const DENSE: Source = Source {
    name: "dense.cu",
    text: texts!("rules.cuh", "dense.cu"),
    kernels: &[
        "add_bias",
        "cut_and_sum",
        "sum_stretches",
        "loss_of_logits",
        "mean_of_losses",
        "probabilities_of",
        "copy_columns",
        "to_brain",
        "step_sgd",
        "step_adagrad",
        "step_adam",
        "sum_rows_of_few",
        "sum_rows_of_few_by_four",
        "sum_rows_of_many",
        "sum_rows_of_many_by_four",
    ],
};

/// Every source.
pub const ALL: [Source; 6] = [ROWS, TABLES, NETWORK, TENSOR, CACHE, DENSE];

/// Slots of a set of the cache's table: one for each thread of a warp.
pub const WAYS: u32 = WARP;

/// What the threads of a block share at most without asking the driver for more.
pub const SHARED_BYTES_MAX: u32 = 48 << 10;

/// Rows whose gradients by a bias are summed one after the other, by `cut_and_sum`.
pub const STRETCH: u32 = 64;

/// Columns that a block of `sum_stretches` takes at once.
pub const STRETCH_COLUMNS: u32 = 32;

/// Terms of a row's gradient that one thread sums; a row that has more gets a block.
pub const FEW: u32 = 32;

/// Vectors of a tile that tensor cores take.
pub const TILE: u32 = 16;

/// Floats between two rows of a tile's slopes.
const BETWEEN: u32 = 4;

/// Threads of a warp.
pub const WARP: u32 = 32;

/// The shape of a dot interaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interaction {
    /// Vectors of a sample, the bottom MLP's among them.
    pub vectors: u32,
    /// Floats of a vector.
    pub dim: u32,
    /// Whether a vector meets itself.
    pub with_itself: bool,
    /// In which numbers they are multiplied: in fewer bits than 32 by tensor cores, where
    /// [`Interaction::by_tensor_cores`] says so, else in 32 bits.
    pub precision: Precision,
}

impl Interaction {
    /// Products of a sample.
    pub fn pairs(self) -> u32 {
        let n = self.vectors;
        if self.with_itself { n * (n + 1) / 2 } else { n * n.saturating_sub(1) / 2 }
    }

    /// Floats of a sample that come out: a vector and the products.
    pub fn width(self) -> u32 {
        self.dim + self.pairs()
    }

    /// The same in 32-bit floats.
    pub fn plain(self) -> Self {
        Self { precision: Precision::F32, ..self }
    }

    /// Whether tensor cores multiply: in fewer bits, where vectors are of a multiple of four floats
    /// and what a sample shares finds room, both ways.
    pub fn by_tensor_cores(self) -> bool {
        let fits = |backward| self.tiles_bytes(backward).is_some_and(|b| b <= SHARED_BYTES_MAX);
        self.precision != Precision::F32 && self.dim.is_multiple_of(4) && fits(false) && fits(true)
    }

    /// The kernel that does it.
    pub fn kernel(self, backward: bool) -> &'static str {
        match (self.by_tensor_cores().then_some(self.precision), backward) {
            (None | Some(Precision::F32), false) => "interact",
            (None | Some(Precision::F32), true) => "interact_backward",
            (Some(Precision::Tf32), false) => "interact_tf32",
            (Some(Precision::Tf32), true) => "interact_backward_tf32",
            (Some(Precision::Bf16), false) => "interact_brains",
            (Some(Precision::Bf16), true) => "interact_backward_brains",
        }
    }

    /// Bytes that a sample shares where tensor cores multiply: its products, or its slopes as a
    /// square.
    fn tiles_bytes(self, backward: bool) -> Option<u32> {
        let padded = self.vectors.checked_next_multiple_of(TILE)?;
        if backward {
            return padded.checked_mul(padded.checked_add(BETWEEN)?)?.checked_mul(4);
        }
        padded.checked_mul(padded).map(|_| 4 * self.pairs())
    }

    /// Warps of a block, and the bytes that they share: as many warps, up to a whole block, as find
    /// room. None where not even one does.
    pub fn warps(self, backward: bool) -> Option<(u32, u32)> {
        let bytes = if self.by_tensor_cores() {
            self.tiles_bytes(backward)?
        } else {
            let slopes = if backward { self.pairs() } else { 0 };
            let floats = self.vectors.checked_mul(self.dim.checked_add(1)?)?.checked_add(slopes)?;
            floats.checked_mul(4)?
        };
        let warps = (SHARED_BYTES_MAX / bytes.max(1)).min(BLOCK / WARP);
        (warps > 0).then_some((warps, warps * bytes))
    }
}

/// Threads of a block. All kernels go round a grid of any size; whole warps are all they ask for.
pub const BLOCK: u32 = 256;

/// Blocks for that many elements, each thread taking one, at most `blocks_max`, at least one.
pub fn grid(elements: u64, blocks_max: u32) -> u32 {
    let blocks = elements.div_ceil(u64::from(BLOCK)).clamp(1, u64::from(blocks_max.max(1)));
    u32::try_from(blocks).unwrap_or(blocks_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_that_is_named_stands_in_the_source_and_no_other() {
        for source in ALL {
            let declared: Vec<&str> = source
                .text
                .split("__global__ void ")
                .skip(1)
                .filter_map(|rest| rest.split('(').next())
                .collect();
            assert_eq!(declared, source.kernels, "{}", source.name);
        }
    }

    #[test]
    fn sizes_that_both_sides_know_are_the_same() {
        for (name, value) in [
            ("STRETCH", STRETCH),
            ("STRETCH_COLUMNS", STRETCH_COLUMNS),
            ("FEW", FEW),
            ("BLOCK_THREADS", BLOCK),
        ] {
            let line = format!("#define {name} {value}u\n");
            assert!(DENSE.text.contains(&line), "{line}");
        }
        for (name, value) in [("TILE", TILE), ("BETWEEN", BETWEEN)] {
            let line = format!("#define {name} {value}u\n");
            assert!(TENSOR.text.contains(&line), "{line}");
        }
    }

    #[test]
    fn an_interactions_warps_share_what_a_block_may_share() {
        let precision = Precision::F32;
        let shape = |vectors, dim| Interaction { vectors, dim, with_itself: false, precision };
        assert_eq!(shape(27, 16).pairs(), 351);
        assert_eq!(shape(27, 16).warps(false), Some((8, 8 * 27 * 17 * 4)));
        assert_eq!(shape(27, 128).warps(true), Some((3, 3 * (27 * 129 + 351) * 4)));
        assert_eq!(shape(100, 128).warps(false), None, "51,600 bytes");
        assert_eq!(shape(u32::MAX, 128).warps(false), None);
    }

    #[test]
    fn tensor_cores_take_what_they_can_and_leave_the_rest() {
        let shape =
            |vectors, dim, precision| Interaction { vectors, dim, with_itself: false, precision };
        let kaggle = shape(27, 16, Precision::Tf32);
        assert_eq!(kaggle.kernel(false), "interact_tf32");
        assert_eq!(kaggle.warps(false), Some((8, 8 * 351 * 4)));
        assert_eq!(kaggle.warps(true), Some((8, 8 * 32 * 36 * 4)));
        assert_eq!(kaggle.plain().kernel(true), "interact_backward");
        assert_eq!(shape(27, 128, Precision::Bf16).kernel(true), "interact_backward_brains");
        assert_eq!(shape(27, 128, Precision::Bf16).warps(true), Some((8, 8 * 32 * 36 * 4)));
        // no vectors of four floats; slopes of more than 48 KiB
        for left in [shape(27, 18, Precision::Tf32), shape(112, 16, Precision::Tf32)] {
            assert_eq!(left.kernel(false), "interact", "{left:?}");
        }
        assert_eq!(shape(u32::MAX, 4, Precision::Tf32).kernel(false), "interact");
        let alone = shape(1, 4, Precision::Bf16);
        assert_eq!(alone.warps(false), Some((8, 0)), "no product");
    }

    #[test]
    fn a_grid_covers_its_elements_or_is_as_large_as_may_be() {
        assert_eq!((grid(0, 9), grid(1, 9), grid(256, 9), grid(257, 9)), (1, 1, 1, 2));
        assert_eq!((grid(u64::MAX, 132), grid(1000, 0)), (132, 1));
    }
}
