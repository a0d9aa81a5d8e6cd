use super::*;
use crate::reference;

#[test]
fn every_reference_pixel_is_the_same_byte() {
    for (size, ..) in reference::SIZES {
        let rules = reference::rules(size);
        for case in reference::cases(size).filter(|case| case["pixel_values"].is_object()) {
            let name = format!("{size} {}", case["name"]);
            let expected = &case["pixel_values"];
            let tiles = tiles_of_turns(&reference::turns(case), &rules, reference::split(case));
            let frames: usize = tiles.iter().map(Tiles::frames).sum();
            assert_eq!(
                expected["shape"],
                serde_json::json!([1, frames, 3, rules.tile_size, rules.tile_size]),
                "{name}"
            );
            assert_eq!(expected["u8_sha256"], u8_sha256(&tiles), "{name}");
            let values: Vec<f32> = tiles
                .iter()
                .flat_map(|tiles| pixel_values(tiles, &rules))
                .collect();
            for sample in expected["samples"].as_array().expect("samples") {
                let (index, value) = (
                    sample[0].as_u64().expect("an index") as usize,
                    sample[1].as_f64().expect("a value"),
                );
                assert!(
                    (f64::from(values[index]) - value).abs() <= 1e-6,
                    "{name}: {} at {index}, expected {value}",
                    values[index]
                );
            }
        }
    }
}

#[test]
fn layouts_are_those_of_transformers() {
    // Width, height, rows, cols: the same for tiles of 512 and 384.
    let cases = [
        (640, 480, 3, 4),
        (1920, 1080, 3, 4),
        (3840, 2160, 3, 4),
        (480, 640, 4, 3),
        (512, 512, 4, 4),
        (50, 50, 4, 4),
        (333, 777, 4, 2),
        (2000, 100, 1, 4),
        (100, 2000, 4, 1),
        (5000, 1, 1, 4),
    ];
    for tile_size in [512, 384] {
        let rules = ImageRules {
            tile_size,
            longest_edge: 4 * tile_size,
            ..reference::rules("256m")
        };
        for (width, height, rows, cols) in cases {
            assert_eq!(
                layout(width, height, &rules, true),
                Layout { rows, cols },
                "{width}x{height}"
            );
            assert_eq!(layout(width, height, &rules, false), Layout::WHOLE);
        }
    }
}

#[test]
fn an_image_of_one_tile_is_not_split() {
    let rules = ImageRules {
        longest_edge: 64,
        ..reference::rules("micro")
    };
    let picture = reference::picture("a_entrance.png");
    let tiles = tiles(&picture, &rules, true);
    assert_eq!(
        (tiles.layout, tiles.frames(), tiles.pixels.len()),
        (Layout::WHOLE, 1, 64 * 64 * 3)
    );
}

#[test]
fn the_layout_is_that_of_the_tiles() {
    let rules = reference::rules("micro");
    for (width, height) in [(7, 300), (300, 7), (33, 31), (1, 1), (64, 65)] {
        let picture = Picture::from_rgb(width, height, vec![128; (width * height * 3) as usize])
            .expect("an image");
        for split in [true, false] {
            let tiles = tiles(&picture, &rules, split);
            assert_eq!(tiles.layout, layout(width, height, &rules, split));
            assert_eq!(tiles.pixels.len(), tiles.frames() * 64 * 64 * 3);
            assert!(
                tiles.pixels.iter().all(|&sample| sample == 128),
                "a flat image stays flat"
            );
        }
    }
}

/// Sizes that transformers gives: past the limit, an image is scaled twice.
#[test]
fn the_longest_edge_has_a_limit() {
    for (longest, from, expected) in [
        (5000, (333, 999), (1364, 4096)),
        (5000, (1001, 777), (4096, 3180)),
        (8192, (641, 479), (4096, 3061)),
        (8192, (1001, 777), (4096, 3179)),
        (8192, (3, 4000), (3, 4096)),
        (4096, (333, 999), (1366, 4096)),
        (333, (1000, 999), (333, 332)),
        (335, (1000, 999), (335, 334)),
    ] {
        let found = scaled(size(from.0, from.1), longest);
        assert_eq!(
            (found.width, found.height),
            expected,
            "{from:?} to {longest}"
        );
    }
}
