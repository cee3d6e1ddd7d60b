//! Rows to the columns of a panel, as products read their right operand.

use super::dispatch;
use super::lanes::{LANES, Lanes};
use super::product::PANEL;

/// Writes float i of every row side by side into line i, and zeros beside them, for as many floats
/// of a row as there are lines. There are at most [`PANEL`] rows.
pub(crate) fn turn(
    rows: &[f32], // [rows, stride]
    stride: usize,
    lines: &mut [[f32; PANEL]],
) {
    let width = lines.len();
    assert!(0 < width && width <= stride, "{width} of {stride} floats");
    assert!(rows.len().is_multiple_of(stride), "rows of {stride} floats");
    assert!(rows.len() / stride <= PANEL, "more rows than a panel has columns");
    turn_rows(rows, stride, lines);
}

fn turn_rows(rows: &[f32], stride: usize, lines: &mut [[f32; PANEL]]) {
    dispatch!(turn_all(rows: &[f32], stride: usize, lines: &mut [[f32; PANEL]]))
}

#[inline(always)]
unsafe fn turn_all<L: Lanes>(rows: &[f32], stride: usize, lines: &mut [[f32; PANEL]]) {
    let width = lines.len();
    if width < LANES {
        lines.fill([0.0; PANEL]);
        for (column, row) in rows.chunks_exact(stride).enumerate() {
            lines.iter_mut().zip(row).for_each(|(line, &x)| line[column] = x);
        }
        return;
    }
    let count = rows.len() / stride;
    for first in (0..width).step_by(LANES) {
        // the last square goes back to where it is whole
        let first = first.min(width - LANES);
        for column in (0..PANEL).step_by(LANES) {
            // SAFETY: row `column + i` is one of `count`, and has a vector from `first` on, as the
            // lines are that many; a line has a vector from `column` on. The caller has the
            // processor's instructions.
            unsafe {
                let mut vectors = [L::zero(); LANES];
                for (i, vector) in vectors.iter_mut().enumerate() {
                    if column + i < count {
                        *vector = L::load(rows.as_ptr().add((column + i) * stride + first));
                    }
                }
                let vectors = L::turned(vectors);
                for (line, vector) in lines[first..first + LANES].iter_mut().zip(vectors) {
                    vector.store(line.as_mut_ptr().add(column));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::Plain;
    #[cfg(target_arch = "x86_64")]
    use crate::kernels::lanes::{Avx2, Avx512};

    /// One form of the loop.
    type Way = unsafe fn(&[f32], usize, &mut [[f32; PANEL]]);

    #[test]
    fn every_float_is_where_it_belongs_and_zeros_are_beside() {
        let mut ways: Vec<Way> = vec![turn_all::<Plain>];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                ways.push(turn_all::<Avx2>);
            }
            if is_x86_feature_detected!("avx512f") {
                ways.push(turn_all::<Avx512>);
            }
        }
        for (count, width) in
            [(32, 64_usize), (27, 16), (1, 256), (17, 33), (32, 13), (3, 1), (16, 47)]
        {
            for stride in [width, width.next_multiple_of(LANES) + LANES] {
                let rows: Vec<f32> = (0..count * stride).map(|i| i as f32 + 1.0).collect();
                for way in &ways {
                    let mut lines = vec![[f32::NAN; PANEL]; width];
                    // SAFETY: rows and lines fit, and the processor was asked.
                    unsafe { way(&rows, stride, &mut lines) };
                    for (i, line) in lines.iter().enumerate() {
                        for (column, &found) in line.iter().enumerate() {
                            let expected = (column * stride + i) as f32 + 1.0;
                            assert_eq!(found, if column < count { expected } else { 0.0 });
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "more rows")]
    fn more_rows_than_a_panel_has_are_refused() {
        turn(&[0.0; 33 * 2], 2, &mut [[0.0; PANEL]; 2]);
    }
}
