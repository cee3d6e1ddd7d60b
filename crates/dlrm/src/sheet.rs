//! A matrix whose rows each begin a cache line, with as many floats after a row as make whole
//! lines: what vectors are read from and written to. Floats past a row's width are nobody's.

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};

use crate::kernels::LANES;

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// So many floats from row to row let neighbouring rows share a cache's sets: one line more does
/// not.
const CROWDED: usize = 128;

/// A matrix of zeros at first.
pub(crate) struct Sheet {
    lines: Vec<Line>,
    stride: usize,
    width: usize,
}

/// Some rows of a sheet, to be written.
pub(crate) struct SheetRows<'a> {
    pub values: &'a mut [f32], // [rows, stride]
    pub stride: usize,
}

impl Sheet {
    /// Rows of `width` floats, a line or more apart.
    pub(crate) fn new(rows: usize, width: usize) -> Self {
        let whole = width.next_multiple_of(LANES);
        let stride = if whole.is_multiple_of(CROWDED) { whole + LANES } else { whole };
        Self { width, ..Self::with_stride(rows, stride) }
    }

    /// Rows of `stride` floats, whole lines, with nothing between them.
    pub(crate) fn with_stride(rows: usize, stride: usize) -> Self {
        assert!(stride.is_multiple_of(LANES), "a stride of {stride}");
        let lines = vec![Line([0.0; LANES]); rows * stride / LANES];
        Self { lines, stride, width: stride }
    }

    /// Floats from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The first rows, with all that lies between them.
    pub(crate) fn rows(&self, count: usize) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..count * self.stride]
    }

    /// The first rows, with all that lies between them.
    pub(crate) fn rows_mut(&mut self, count: usize) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..count * self.stride]
    }

    /// The first rows.
    pub(crate) fn part_mut(&mut self, count: usize) -> SheetRows<'_> {
        let stride = self.stride;
        SheetRows { values: self.rows_mut(count), stride }
    }

    /// All floats.
    pub(crate) fn all_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    /// All rows without what lies between them, one after the other.
    pub(crate) fn dense(&self) -> Cow<'_, [f32]> {
        if self.width == self.stride {
            return Cow::Borrowed(self.all());
        }
        Cow::Owned(self.each_row().flatten().copied().collect())
    }

    /// Sets all rows; what lies between them stays.
    pub(crate) fn set_dense(
        &mut self,
        values: &[f32], // [rows, width]
    ) {
        assert_eq!(values.len(), self.lines.len() * LANES / self.stride * self.width, "a sheet");
        let rows = values.chunks_exact(self.width);
        self.each_row_mut().zip(rows).for_each(|(row, values)| row.copy_from_slice(values));
    }

    /// All rows, each as wide as it is.
    pub(crate) fn each_row(&self) -> impl Iterator<Item = &[f32]> {
        self.all().chunks_exact(self.stride).map(|row| &row[..self.width])
    }

    /// All rows, each as wide as it is.
    pub(crate) fn each_row_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let (stride, width) = (self.stride, self.width);
        self.all_mut().chunks_exact_mut(stride).map(move |row| &mut row[..width])
    }

    /// All floats.
    pub(crate) fn all(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }
}
