//! Position tables and patch kernels for another image or patch size, by bicubic interpolation as eva_clip does it.

use tch::{Kind, Tensor};

/// What a parameter is, and how it is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resize {
    /// A row a token, those of class tokens first, then a square grid: [N, D] or [1, N, D].
    Positions {
        /// Tokens that are of no place.
        class: i64,
        /// Whether the corners of both grids are the same points.
        align_corners: bool,
    },
    /// A patch's kernel: [D, C, side, side].
    Kernel,
}

impl Resize {
    /// Whether a tensor of the shape `found` can become one of the shape `expected`.
    pub(super) fn can(self, found: &[i64], expected: &[i64]) -> bool {
        match self {
            Resize::Positions { class, .. } => {
                if rows(found) == rows(expected) && found.last() == expected.last() {
                    // The same table, with or without a leading 1.
                    return found.iter().product::<i64>() == expected.iter().product::<i64>();
                }
                let square = |shape: &[i64]| side(rows(shape) - class).is_some();
                let [leading, ..] = found else { return false };
                (found.len() == 2 || found.len() == 3 && *leading == 1)
                    && found.last() == expected.last()
                    && square(found)
                    && square(expected)
            }
            Resize::Kernel => {
                found.len() == 4 && found[..2] == expected[..2] && found[2] == found[3] && expected[2] == expected[3]
            }
        }
    }

    /// The tensor with the shape `expected`, for which [`can`](Self::can) holds; fp32.
    pub(super) fn apply(self, tensor: &Tensor, expected: &[i64]) -> Tensor {
        let tensor = tensor.to_kind(Kind::Float);
        match self {
            Resize::Kernel => tensor.upsample_bicubic2d([expected[2], expected[3]], false, None, None),
            Resize::Positions { class, align_corners } => {
                let (from, to) = (rows(&tensor.size()) - class, rows(expected) - class);
                let width = expected[expected.len() - 1];
                let table_ND = tensor.view([from + class, width]);
                if from == to {
                    return table_ND.view(expected);
                }
                let [old, new] = [from, to].map(|places| side(places).expect("checked: a square grid"));
                let grid = table_ND.narrow(0, class, from).view([1, old, old, width]).permute([0, 3, 1, 2]);
                let grid = grid.upsample_bicubic2d([new, new], align_corners, None, None);
                let places = grid.permute([0, 2, 3, 1]).reshape([to, width]);
                Tensor::cat(&[table_ND.narrow(0, 0, class), places], 0).view(expected)
            }
        }
    }
}

fn rows(shape: &[i64]) -> i64 {
    shape.iter().rev().skip(1).product()
}

/// The root of a square that is not empty.
fn side(places: i64) -> Option<i64> {
    (1..=places).take_while(|side| side * side <= places).find(|side| side * side == places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashMap, path::Path};

    #[test]
    fn tables_and_kernels_are_resized_as_torch_does() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/resize.safetensors");
        let case: HashMap<String, Tensor> = Tensor::read_safetensors(path).unwrap().into_iter().collect();
        let mut checked = 0;
        for (name, expected) in &case {
            let parts: Vec<&str> = name.split('.').collect();
            let resize = match parts[..] {
                ["table", _, corners] => Resize::Positions { class: 1, align_corners: corners == "aligned" },
                ["kernel", _] => Resize::Kernel,
                _ => continue,
            };
            let (given, size) = (&case[parts[0]], expected.size());
            assert!(resize.can(&given.size(), &size), "{name}");
            let off = (resize.apply(given, &size) - expected).abs().max().double_value(&[]);
            assert!(off <= 1e-6, "{name}: off by {off}");
            checked += 1;
        }
        assert_eq!(checked, 6);
        let three = [1, 10, 8];
        let whole = Resize::Positions { class: 1, align_corners: false };
        assert_eq!(whole.apply(&case["table"].unsqueeze(0), &[1, 26, 8]).size(), [1, 26, 8]);
        assert!(whole.can(&three, &[1, 26, 8]) && !whole.can(&three, &[1, 25, 8]) && !whole.can(&three, &[1, 26, 9]));
        assert!(!Resize::Kernel.can(&[8, 3, 8, 8], &[8, 4, 4, 4]));
    }
}
