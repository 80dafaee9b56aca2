//! What planes have of products on matrix units: sums over blocks of inputs.

use cubecl::prelude::*;

use crate::matrix_units::{MatrixUnitConfig, ProductSizes, ROW_TILE};
use crate::number_products::{add_numbers, load_numbers};
use crate::packed::{BLOCK, TILE};
use crate::packed_rows::{CODE_WORDS, RECORD_WORDS};
use crate::tiles::{CodeLayout, TileLayout, decode_codes, decode_scales, load_tile};

type Two = Const<2>;
type Four = Const<4>;

/// What a lane has asked of memory of some blocks of inputs: so many turns, each with the tiles and the tiles of rows of
/// its cube.
#[derive(CubeType)]
struct Loaded {
    /// As `load_tile` or `load_numbers` leaves them.
    weights: Array<Vector<u32, Two>>,
    scales: Array<u32>,
    /// Of rows, `[n_turns, n_row_tiles]`: codes, and squares of norms.
    activations: Array<Vector<u32, Four>>,
    squares: Array<u32>,
    /// Of the two rows that the lane has sums of, `[n_turns, n_row_tiles, 2]`: scales beside sums of codes, and the sums
    /// of the first half.
    row_scales: Array<Vector<u32, Two>>,
    first_sums: Array<u32>,
}

#[cube]
impl Loaded {
    fn new(#[comptime] config: MatrixUnitConfig) -> Self {
        let tiles = comptime!(config.n_turns * config.all_tiles());
        let rows = comptime!((config.n_turns * config.n_row_tiles) as usize);
        Loaded {
            weights: Array::<Vector<u32, Two>>::new(comptime!((tiles * config.layout.n_pairs()) as usize)),
            // No array is empty.
            scales: Array::<u32>::new(comptime!((tiles * config.layout.n_scale_words()).max(1) as usize)),
            activations: Array::<Vector<u32, Four>>::new(rows),
            squares: Array::<u32>::new(rows),
            row_scales: Array::<Vector<u32, Two>>::new(comptime!(2 * rows)),
            first_sums: Array::<u32>::new(comptime!(2 * rows)),
        }
    }
}

/// What each plane has of the outputs of a cube, `[n_planes, rows, outputs]`, and of the squares of its rows,
/// `[n_planes, rows]`, for all of them.
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
    // Groups of blocks that are whole, `n_turns` each.
    let n_planes = comptime!(config.n_planes);
    let step = comptime!(config.n_turns * config.n_planes);
    let last_of_first = plane + comptime!((config.n_turns - 1) * config.n_planes);
    let n_whole = if n_blocks > last_of_first {
        (n_blocks - last_of_first - 1u32) / step + 1u32
    } else {
        0u32.runtime()
    };
    if n_whole > 0u32 {
        let mut loaded = Loaded::new(config);
        for i in 0..n_whole {
            let block = plane + i * step;
            load_blocks(
                words,
                pairs,
                second_words,
                second_pairs,
                x,
                x_pairs,
                x_fours,
                &starts,
                &column_starts,
                &tiles,
                &mut loaded,
                block,
                lane,
                config,
            );
            sync_plane();
            add_blocks(&loaded, &mut sums, &mut squares, lane, config);
        }
    }
    if comptime!(config.n_turns > 1) {
        let one = comptime!(config.in_one_turn());
        let mut block = plane + n_whole * step;
        while block < n_blocks {
            let mut loaded = Loaded::new(one);
            load_blocks(
                words,
                pairs,
                second_words,
                second_pairs,
                x,
                x_pairs,
                x_fours,
                &starts,
                &column_starts,
                &tiles,
                &mut loaded,
                block,
                lane,
                one,
            );
            sync_plane();
            add_blocks(&loaded, &mut sums, &mut squares, lane, one);
            block += n_planes;
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

/// Asks for what the lane needs of block `block` of inputs, and of every `n_planes`th behind it. A barrier behind this
/// keeps compilers from moving loads to where they are needed, one wait after the other.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load_blocks(
    words: &Array<u32>,
    pairs: &Array<Vector<u32, Two>>,
    second_words: &Array<u32>,
    second_pairs: &Array<Vector<u32, Two>>,
    x: &Array<u32>,
    x_pairs: &Array<Vector<u32, Two>>,
    x_fours: &Array<Vector<u32, Four>>,
    starts: &Array<u32>,
    column_starts: &Array<u32>,
    tiles: &Array<u32>,
    loaded: &mut Loaded,
    block: u32,
    lane: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let n_row_tiles = comptime!(config.n_row_tiles);
    let n_turns = comptime!(config.n_turns);
    let layout = comptime!(config.layout);
    #[unroll]
    for t in 0..comptime!(config.all_tiles()) {
        let tile = tiles[t as usize];
        if comptime!(t < config.n_tiles) {
            load_weights(words, pairs, tile, block, lane, loaded, t, config);
        } else {
            load_weights(second_words, second_pairs, tile, block, lane, loaded, t, config);
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
            let further = comptime!((turn * config.n_planes * RECORD_WORDS) as usize);
            loaded.activations[at] = x_fours[fours + comptime!(further / 4)];
            if comptime!(config.is_normed) {
                loaded.squares[at] = x[words_at + comptime!(further + CODE_WORDS as usize + 3)];
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
                let further = comptime!((turn * config.n_planes * RECORD_WORDS + CODE_WORDS) as usize);
                loaded.row_scales[at] = x_pairs[pairs_at + comptime!(further / 2)];
                if comptime!(layout.has_halves()) {
                    loaded.first_sums[at] = x[words_at + comptime!(further + 2)];
                }
            }
        }
    }
}

/// `load_tile` or `load_numbers`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load_weights(
    words: &Array<u32>,
    pairs: &Array<Vector<u32, Two>>,
    tile: u32,
    block: u32,
    lane: u32,
    loaded: &mut Loaded,
    #[comptime] t: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let Loaded { weights, scales, .. } = loaded;
    match comptime!(config.layout) {
        TileLayout::Codes(layout) => {
            load_tile(words, pairs, tile, block, lane, weights, scales, t, layout, config);
        }
        TileLayout::Numbers(_) => load_numbers(words, tile, block, lane, weights, t, config),
    }
}

/// Adds the products of loaded blocks to `sums`, `[tiles, n_row_tiles, 4]`, and the squares of their activations to
/// `squares`.
#[cube]
fn add_blocks(
    loaded: &Loaded,
    sums: &mut Array<f32>,
    squares: &mut Array<f32>,
    lane: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let n_row_tiles = comptime!(config.n_row_tiles);
    let n_turns = comptime!(config.n_turns);
    let layout = comptime!(config.layout);
    #[unroll]
    for turn in 0..n_turns {
        // Of the two rows, `[n_row_tiles, 2]`: scales, and sums of activations, `[n_row_tiles, 2, 2 halves]`.
        let mut steps = Array::<f32>::new(comptime!((2 * n_row_tiles) as usize));
        let mut totals = Array::<f32>::new(comptime!((4 * n_row_tiles) as usize));
        #[unroll]
        for r in 0..n_row_tiles {
            let at = comptime!((turn * n_row_tiles + r) as usize);
            if comptime!(config.is_normed) {
                squares[r as usize] += f32::reinterpret(loaded.squares[at]);
            }
            #[unroll]
            for c in 0..2usize {
                let pair = loaded.row_scales[comptime!(2 * at + c)];
                let step = f32::reinterpret(pair[0usize]);
                let to = comptime!(2 * r as usize + c);
                steps[to] = step;
                if comptime!(layout.has_offset()) {
                    let total = i32::reinterpret(pair[1usize]);
                    if comptime!(layout.has_halves()) {
                        let first = i32::reinterpret(loaded.first_sums[comptime!(2 * at + c)]);
                        totals[comptime!(2 * to)] = step * f32::cast_from(first);
                        totals[comptime!(2 * to + 1)] = step * f32::cast_from(total - first);
                    } else {
                        totals[comptime!(2 * to)] = step * f32::cast_from(total);
                    }
                }
            }
        }
        match comptime!(config.layout) {
            TileLayout::Codes(layout) => {
                add_codes(loaded, &steps, &totals, sums, lane, turn, layout, config);
            }
            TileLayout::Numbers(format) =>
            {
                #[unroll]
                for t in 0..comptime!(config.all_tiles()) {
                    let of_turn = comptime!(turn * config.all_tiles() + t);
                    #[unroll]
                    for r in 0..n_row_tiles {
                        let rows = loaded.activations[comptime!((turn * n_row_tiles + r) as usize)];
                        let first_sum = comptime!((t * n_row_tiles + r) * 4);
                        let first_step = comptime!(2 * r);
                        add_numbers(
                            &loaded.weights,
                            rows,
                            &steps,
                            sums,
                            of_turn,
                            first_step,
                            first_sum,
                            format,
                        );
                    }
                }
            }
        }
    }
}

/// Adds the products of the blocks of a turn to `sums`: whole numbers, which are multiplied by the `steps` of their rows and
/// the scales of their outputs.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_codes(
    loaded: &Loaded,
    steps: &Array<f32>,
    totals: &Array<f32>,
    sums: &mut Array<f32>,
    lane: u32,
    #[comptime] turn: u32,
    #[comptime] layout: CodeLayout,
    #[comptime] config: MatrixUnitConfig,
) {
    let n_row_tiles = comptime!(config.n_row_tiles);
    #[unroll]
    for t in 0..comptime!(config.all_tiles()) {
        let of_turn = comptime!(turn * config.all_tiles() + t);
        let mut weights = Array::<Vector<i8, Four>>::new(4usize);
        #[unroll]
        for i in 0..4u32 {
            let four =
                decode_codes(&loaded.weights, lane, of_turn, comptime!(i / 2), comptime!(i % 2), layout);
            weights[i as usize] = Vector::<i8, Four>::reinterpret(four);
        }
        let n_halves = comptime!(if layout.has_halves() { 2u32 } else { 1u32 });
        #[unroll]
        for half in 0..n_halves {
            let first = decode_scales(&loaded.scales, lane, of_turn, half, 0u32, layout);
            let second = decode_scales(&loaded.scales, lane, of_turn, half, 1u32, layout);
            #[unroll]
            for r in 0..n_row_tiles {
                let at = comptime!((turn * n_row_tiles + r) as usize);
                let mut centres = Vector::<i32, Two>::empty();
                #[unroll]
                for c in 0..2usize {
                    let mut centre = 0i32;
                    if comptime!(layout.signed_centre() != 0) {
                        let mut sum = i32::reinterpret(loaded.row_scales[comptime!(2 * at + c)][1usize]);
                        if comptime!(layout.has_halves()) {
                            let first = i32::reinterpret(loaded.first_sums[comptime!(2 * at + c)]);
                            sum = if comptime!(half == 0) { first } else { sum - first };
                        }
                        centre = sum * comptime!(-(layout.signed_centre() as i32));
                    }
                    centres[c] = centre;
                }
                let mut upper = Array::<Vector<i32, Two>>::new(2usize);
                let mut products = Array::<Vector<i32, Two>>::new(2usize);
                #[unroll]
                for o in 0..2usize {
                    upper[o] = Vector::<i32, Two>::new(0i32);
                    products[o] = centres;
                }
                multiply(&weights, loaded.activations[at], &mut upper, 0u32, half, n_halves);
                // With one tile of rows neither instruction waits for the other; with more there is other work
                // meanwhile, and registers are dearer.
                if comptime!(n_row_tiles == 1) {
                    multiply(&weights, loaded.activations[at], &mut products, 2u32, half, n_halves);
                    add_upper(&upper, &mut products);
                } else {
                    add_upper(&upper, &mut products);
                    multiply(&weights, loaded.activations[at], &mut products, 2u32, half, n_halves);
                }
                #[unroll]
                for i in 0..4usize {
                    let c = comptime!(2 * r as usize + i % 2);
                    let of_output = if comptime!(i / 2 == 0) { first } else { second };
                    let to = comptime!((t * n_row_tiles + r) as usize * 4 + i);
                    let (o, column) = comptime!((i / 2, i % 2));
                    let product = f32::cast_from(products[o][column]);
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

/// `products += 256 upper`.
#[cube]
fn add_upper(upper: &Array<Vector<i32, Two>>, products: &mut Array<Vector<i32, Two>>) {
    #[unroll]
    for o in 0..2usize {
        let (of_upper, before) = (upper[o], products[o]);
        let mut sum = Vector::<i32, Two>::empty();
        #[unroll]
        for c in 0..2usize {
            sum[c] = (of_upper[c] << 8i32) + before[c];
        }
        products[o] = sum;
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
