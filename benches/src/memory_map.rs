//! Flat arrays in huge pages, which is what the limits work on. They are never handed back early
//! and hold floats alone.

use anyhow::{Context, Result};
use memmap2::MmapMut;

/// An array of floats in memory of its own, in huge pages where the system gives them.
pub(crate) struct Floats {
    map: MmapMut,
}

impl Floats {
    /// So many floats, each written once, so that every page is there.
    pub(crate) fn filled(floats: usize, value: impl Fn(usize) -> f32) -> Result<Floats> {
        let mut map = MmapMut::map_anon(floats * size_of::<f32>()).context("map a flat array")?;
        #[cfg(target_os = "linux")]
        map.advise(memmap2::Advice::HugePage).context("ask for huge pages")?;
        let slice: &mut [f32] = bytemuck::cast_slice_mut(&mut map);
        for (i, float) in slice.iter_mut().enumerate() {
            *float = value(i);
        }
        Ok(Floats { map })
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.map)
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}
