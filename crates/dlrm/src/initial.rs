//! How a new model's weights are drawn: each parameter from (seed, its name), the same on every
//! platform. It draws no embedding; tables do.

use table::{GOLDEN, mix};

/// Fills `values` from N(0, `std`): element i depends on (seed, name, i) alone.
pub(crate) fn fill_normal(seed: u64, name: &str, std: f64, values: &mut [f32]) {
    let name = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
    });
    let seed = mix(mix(seed).wrapping_add(name));
    for (i, x) in values.iter_mut().enumerate() {
        // Box and Muller (1958), one value of the pair; `libm` so that every platform agrees
        let word = mix(seed.wrapping_add((i as u64).wrapping_mul(GOLDEN)));
        let u = ((word >> 32) as f64 + 0.5) / (1_u64 << 32) as f64;
        let v = (word & 0xffff_ffff) as f64 / (1_u64 << 32) as f64;
        let z = libm::sqrt(-2.0 * libm::log(u)) * libm::cos(std::f64::consts::TAU * v);
        *x = (std * z) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_moments_and_depend_on_seed_and_name() {
        let draw = |seed, name| {
            let mut values = vec![0.0; 1 << 16];
            fill_normal(seed, name, 0.5, &mut values);
            values
        };
        let values = draw(1, "bot_l.0.weight");
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let square = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 1e-2 && (square.sqrt() - 0.5).abs() < 1e-2, "{mean} {square}");
        assert_eq!(values, draw(1, "bot_l.0.weight"));
        assert_ne!(values, draw(2, "bot_l.0.weight"));
        assert_ne!(values, draw(1, "bot_l.2.weight"));
    }
}
