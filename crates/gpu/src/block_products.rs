//! What planes have of products on matrix units: sums over blocks of inputs.

use cubecl::prelude::*;

use crate::matrix_units::{MatrixUnitConfig, N_PLANES, ProductSizes, ROW_TILE};
use crate::packed::{BLOCK, TILE};
use crate::packed_rows::{CODE_WORDS, RECORD_WORDS};
use crate::tiles::{decode_codes, decode_scales, load_tile};

type Two = Const<2>;
type Four = Const<4>;

/// What each plane has of the outputs of a cube, `[N_PLANES, rows, outputs]`, and of the squares of its rows,
/// `[N_PLANES, rows]`, for all of them.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn share_products(
    words: &Array<u32>,
    pairs: &Array<Vector<u32, Two>>,
    second_words: &Array<u32>,
    second_pairs: &Array<Vector<u32, Two>>,
    x: &Array<u32>,
    x_pairs: &Array<Vector<u32, Two>>,
    x_fours: &Array<Vector<u32, Four>>,
    shared: &mut SharedMemory<f32>,
    shared_squares: &mut SharedMemory<f32>,
    sizes: ProductSizes,
    cube: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let n_tiles = comptime!(config.n_tiles);
    let n_row_tiles = comptime!(config.n_row_tiles);
    let lane = UNIT_POS_X;
    let plane = UNIT_POS_Y;
    let n_blocks = sizes.n_in / BLOCK;
    let first_row = CUBE_POS_Y * comptime!(config.n_columns());
    let mut sums = Array::<f32>::new(comptime!(config.sums() as usize));
    #[unroll]
    for i in 0..comptime!(config.sums()) {
        sums[i as usize] = 0.0f32;
    }
    let mut squares = Array::<f32>::new(comptime!(n_row_tiles as usize));
    // Where the rows begin that the lane loads, and those that it has sums of; rows that are none repeat the last.
    let mut starts = Array::<u32>::new(comptime!(n_row_tiles as usize));
    let mut column_starts = Array::<u32>::new(comptime!((2 * n_row_tiles) as usize));
    let last_row = sizes.n_rows - 1u32;
    #[unroll]
    for r in 0..n_row_tiles {
        squares[r as usize] = 0.0f32;
        let row = first_row + comptime!(ROW_TILE * r);
        starts[r as usize] = (sizes.first_x + u32::min(row + lane / 4u32, last_row)) * n_blocks;
        #[unroll]
        for c in 0..2u32 {
            let column = u32::min(row + lane % 4u32 * 2u32 + c, last_row);
            column_starts[comptime!((2 * r + c) as usize)] = (sizes.first_x + column) * n_blocks;
        }
    }
    let last_tile = (sizes.n_out - 1u32) / TILE;
    let mut tiles = Array::<u32>::new(comptime!(config.all_tiles() as usize));
    #[unroll]
    for m in 0..comptime!(config.n_matrices) {
        #[unroll]
        for t in 0..n_tiles {
            let tile = u32::min(cube * n_tiles + t, last_tile);
            tiles[comptime!((m * n_tiles + t) as usize)] = tile * sizes.tile_words;
        }
    }
    let mut block = plane;
    while block + comptime!((config.n_turns - 1) * N_PLANES) < n_blocks {
        add_blocks(
            words,
            pairs,
            second_words,
            second_pairs,
            x,
            x_pairs,
            x_fours,
            &mut sums,
            &mut squares,
            &starts,
            &column_starts,
            &tiles,
            block,
            lane,
            config,
        );
        block += comptime!(config.n_turns * N_PLANES);
    }
    if comptime!(config.n_turns > 1) {
        while block < n_blocks {
            add_blocks(
                words,
                pairs,
                second_words,
                second_pairs,
                x,
                x_pairs,
                x_fours,
                &mut sums,
                &mut squares,
                &starts,
                &column_starts,
                &tiles,
                block,
                lane,
                comptime!(config.in_one_turn()),
            );
            block += N_PLANES;
        }
    }
    let n_outputs = comptime!(config.n_outputs());
    let n_columns = comptime!(config.n_columns());
    #[unroll]
    for r in 0..n_row_tiles {
        #[unroll]
        for t in 0..comptime!(config.all_tiles()) {
            #[unroll]
            for i in 0..4u32 {
                let output = comptime!(TILE * t + i / 2) + lane / 4u32 * 2u32;
                let row = comptime!(ROW_TILE * r + i % 2) + lane % 4u32 * 2u32;
                shared[((plane * n_columns + row) * n_outputs + output) as usize] =
                    sums[comptime!(((t * n_row_tiles + r) * 4 + i) as usize)];
            }
        }
        if comptime!(config.is_normed) {
            let row = comptime!(ROW_TILE * r) + lane / 4u32;
            let of_row = lane % 4u32;
            if of_row == 0u32 {
                shared_squares[(plane * n_columns + row) as usize] = squares[r as usize];
            }
        }
    }
    sync_cube();
}

/// Adds the products of some blocks of inputs, every [`N_PLANES`]th from `block` on, to `sums`, `[tiles,
/// n_row_tiles, 4]`. All that they need is asked of memory before anything is computed, and the barrier keeps it
/// there.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_blocks(
    words: &Array<u32>,
    pairs: &Array<Vector<u32, Two>>,
    second_words: &Array<u32>,
    second_pairs: &Array<Vector<u32, Two>>,
    x: &Array<u32>,
    x_pairs: &Array<Vector<u32, Two>>,
    x_fours: &Array<Vector<u32, Four>>,
    sums: &mut Array<f32>,
    squares: &mut Array<f32>,
    starts: &Array<u32>,
    column_starts: &Array<u32>,
    tiles: &Array<u32>,
    block: u32,
    lane: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let n_row_tiles = comptime!(config.n_row_tiles);
    let n_turns = comptime!(config.n_turns);

    let layout = comptime!(config.layout);

    let n_of_turns = comptime!(n_turns * config.all_tiles());
    let mut codes = Array::<Vector<u32, Two>>::new(comptime!((n_of_turns * layout.n_code_pairs()) as usize));
    let mut scales = Array::<u32>::new(comptime!((n_of_turns * layout.n_scale_words()) as usize));
    // Of rows, `[n_turns, n_row_tiles]`: codes, and squares of norms.
    let mut activations = Array::<Vector<u32, Four>>::new(comptime!((n_turns * n_row_tiles) as usize));
    let mut of_squares = Array::<u32>::new(comptime!((n_turns * n_row_tiles) as usize));
    // Of the two rows that the lane has sums of, `[n_turns, n_row_tiles, 2]`: scales beside sums of codes, and the sums
    // of the first half.
    let mut row_scales = Array::<Vector<u32, Two>>::new(comptime!((2 * n_turns * n_row_tiles) as usize));
    let mut first_sums = Array::<u32>::new(comptime!((2 * n_turns * n_row_tiles) as usize));
    #[unroll]
    for t in 0..comptime!(config.all_tiles()) {
        let tile = tiles[t as usize];
        if comptime!(t < config.n_tiles) {
            load_tile(words, pairs, tile, block, lane, &mut codes, &mut scales, t, config);
        } else {
            load_tile(second_words, second_pairs, tile, block, lane, &mut codes, &mut scales, t, config);
        }
    }
    #[unroll]
    for r in 0..n_row_tiles {
        let record = starts[r as usize] + block;
        let fours = (record * comptime!(RECORD_WORDS / 4) + lane % 4u32) as usize;
        let words_at = (record * RECORD_WORDS) as usize;
        #[unroll]
        for turn in 0..n_turns {
            let at = comptime!((turn * n_row_tiles + r) as usize);
            let further = comptime!((turn * N_PLANES * RECORD_WORDS) as usize);
            activations[at] = x_fours[fours + comptime!(further / 4)];
            if comptime!(config.is_normed) {
                of_squares[at] = x[words_at + comptime!(further + CODE_WORDS as usize + 3)];
            }
        }
        #[unroll]
        for c in 0..2usize {
            let record = column_starts[comptime!(2 * r as usize + c)] + block;
            let pairs_at = (record * comptime!(RECORD_WORDS / 2)) as usize;
            let words_at = (record * RECORD_WORDS) as usize;
            #[unroll]
            for turn in 0..n_turns {
                let at = comptime!(2 * (turn * n_row_tiles + r) as usize + c);
                let further = comptime!((turn * N_PLANES * RECORD_WORDS + CODE_WORDS) as usize);
                row_scales[at] = x_pairs[pairs_at + comptime!(further / 2)];
                if comptime!(layout.has_halves()) {
                    first_sums[at] = x[words_at + comptime!(further + 2)];
                }
            }
        }
    }

    sync_plane();
    #[unroll]
    for turn in 0..n_turns {
        // Of the two rows, `[n_row_tiles, 2]`: scales, and sums of activations, `[n_row_tiles, 2, 2 halves]`.
        let mut steps = Array::<f32>::new(comptime!((2 * n_row_tiles) as usize));
        let mut totals = Array::<f32>::new(comptime!((4 * n_row_tiles) as usize));
        #[unroll]
        for r in 0..n_row_tiles {
            let at = comptime!((turn * n_row_tiles + r) as usize);
            if comptime!(config.is_normed) {
                squares[r as usize] += f32::reinterpret(of_squares[at]);
            }
            #[unroll]
            for c in 0..2usize {
                let pair = row_scales[comptime!(2 * at + c)];
                let step = f32::reinterpret(pair[0usize]);
                let to = comptime!(2 * r as usize + c);
                steps[to] = step;
                if comptime!(layout.has_offset()) {
                    let total = i32::reinterpret(pair[1usize]);
                    if comptime!(layout.has_halves()) {
                        let first = i32::reinterpret(first_sums[comptime!(2 * at + c)]);
                        totals[comptime!(2 * to)] = step * f32::cast_from(first);
                        totals[comptime!(2 * to + 1)] = step * f32::cast_from(total - first);
                    } else {
                        totals[comptime!(2 * to)] = step * f32::cast_from(total);
                    }
                }
            }
        }
        #[unroll]
        for t in 0..comptime!(config.all_tiles()) {
            let of_turn = comptime!(turn * config.all_tiles() + t);
            let mut weights = Array::<Vector<i8, Four>>::new(4usize);
            #[unroll]
            for i in 0..4u32 {
                let four = decode_codes(&codes, lane, of_turn, comptime!(i / 2), comptime!(i % 2), layout);
                weights[i as usize] = Vector::<i8, Four>::reinterpret(four);
            }
            let n_halves = comptime!(if layout.has_halves() { 2u32 } else { 1u32 });
            #[unroll]
            for half in 0..n_halves {
                let first = decode_scales(&scales, lane, of_turn, half, 0u32, layout);
                let second = decode_scales(&scales, lane, of_turn, half, 1u32, layout);
                #[unroll]
                for r in 0..n_row_tiles {
                    let at = comptime!((turn * n_row_tiles + r) as usize);
                    let mut products = Array::<Vector<i32, Two>>::new(2usize);
                    products[0usize] = Vector::<i32, Two>::new(0i32);
                    products[1usize] = Vector::<i32, Two>::new(0i32);
                    multiply(&weights, activations[at], &mut products, 0u32, half, n_halves);
                    let mut centres = Array::<i32>::new(2usize);
                    #[unroll]
                    for c in 0..2usize {
                        centres[c] = 0i32;
                        if comptime!(layout.signed_centre() != 0) {
                            let mut sum = i32::reinterpret(row_scales[comptime!(2 * at + c)][1usize]);
                            if comptime!(layout.has_halves()) {
                                let first = i32::reinterpret(first_sums[comptime!(2 * at + c)]);
                                sum = if comptime!(half == 0) { first } else { sum - first };
                            }
                            centres[c] = sum * comptime!(-(layout.signed_centre() as i32));
                        }
                    }
                    #[unroll]
                    for o in 0..2usize {
                        let upper = products[o];
                        let mut so_far = Vector::<i32, Two>::empty();
                        #[unroll]
                        for c in 0..2usize {
                            so_far[c] = (upper[c] << 8i32) + centres[c];
                        }
                        products[o] = so_far;
                    }
                    multiply(&weights, activations[at], &mut products, 2u32, half, n_halves);
                    #[unroll]
                    for i in 0..4usize {
                        let c = comptime!(2 * r as usize + i % 2);
                        let of_output = if comptime!(i / 2 == 0) { first } else { second };
                        let to = comptime!((t * n_row_tiles + r) as usize * 4 + i);
                        let product = f32::cast_from(products[comptime!(i / 2)][comptime!(i % 2)]);
                        sums[to] = fma(of_output.scale * steps[c], product, sums[to]);
                        if comptime!(layout.has_offset()) {
                            let total = totals[comptime!(2 * c + half as usize)];
                            sums[to] = fma(of_output.offset, total, sums[to]);
                        }
                    }
                }
            }
        }
    }
}

/// Adds the products of weights with bytes of activations, the upper from the first word on, the lower from the third: of
/// a `half` of the block, if `n_halves` are two, or of all of it.
#[cube]
fn multiply(
    weights: &Array<Vector<i8, Four>>,
    activations: Vector<u32, Four>,
    products: &mut Array<Vector<i32, Two>>,
    #[comptime] first: u32,
    #[comptime] half: u32,
    #[comptime] n_halves: u32,
) {
    let instruction = cmma::MmaDefinition::<i8, i8, i32>::new(16usize, 8usize, 32usize);
    let mut bytes = Array::<Vector<i8, Four>>::new(2usize);
    #[unroll]
    for i in 0..2u32 {
        bytes[i as usize] = if comptime!(n_halves == 1 || i == half) {
            Vector::<i8, Four>::reinterpret(activations[comptime!((first + i) as usize)])
        } else {
            Vector::<i8, Four>::new(0i8)
        };
    }
    instruction.execute_inplace(weights, &bytes, products);
}
