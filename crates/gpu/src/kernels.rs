//! The kernels' source and how each is launched. It launches nothing and needs no device.

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

/// Rows by their addresses: gather, update, sum of gradients.
pub const ROWS: Source = Source {
    name: "rows.cu",
    text: include_str!("../kernels/rows.cu"),
    kernels: &[
        "gather_rows_by_four",
        "gather_rows",
        "sum_gradients",
        "update_sgd",
        "update_adagrad",
        "update_rowwise_adagrad",
        "update_adam",
    ],
};

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
        let declared: Vec<&str> = ROWS
            .text
            .split("__global__ void ")
            .skip(1)
            .filter_map(|rest| rest.split('(').next())
            .collect();
        assert_eq!(declared, ROWS.kernels);
    }

    #[test]
    fn a_grid_covers_its_elements_or_is_as_large_as_may_be() {
        assert_eq!((grid(0, 9), grid(1, 9), grid(256, 9), grid(257, 9)), (1, 1, 1, 2));
        assert_eq!((grid(u64::MAX, 132), grid(1000, 0)), (132, 1));
    }
}
