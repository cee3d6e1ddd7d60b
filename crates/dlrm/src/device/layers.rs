//! An MLP on a device: the memory of its layers for the largest batch, and for each size of batch
//! its products, planned once. Bias, ReLU and their gradients are the products' own where the
//! library knows how; else kernels do them. What is planned is tried at once, on memory of the
//! step that is written over before it is read: the library may refuse at its first run what it
//! had advice for, and a step that is recorded could not take another way.

use gpu::kernels::STRETCH;
use gpu::{Buffer, Epilogue, Matrix, Memory, Operation, Precision, Product, Shape, mask_bytes};

use super::arena::{Arena, padded};
use super::machine::Machine;
use crate::Result;

/// A matrix of activations or gradients, by rows, for the largest batch.
#[derive(Debug, Clone)]
pub(super) struct Activations {
    floats: Buffer, // [largest batch, width]
    brains: Option<Buffer>,
    pub width: usize,
}

/// One layer's memory.
#[derive(Debug)]
struct Layer {
    parameter: usize, // of its weight
    rectified: bool,
    output: Activations,
    gradient: Activations,
    mask: Option<Buffer>, // where it is rectified and the next layer is a layer too
}

/// Fully connected layers, each but perhaps the last followed by ReLU.
#[derive(Debug)]
pub(super) struct Layers {
    layers: Vec<Layer>,
    inputs: usize,
    scratch: Buffer, // sums of stretches
    trial: Buffer,   // as long as the largest weight, for what is tried
}

/// What goes in before the first layer, and the gradient by it where it is wanted.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub input: &'a Activations,
    pub input_gradient: Option<&'a Activations>,
}

/// Its products for one size of batch.
#[derive(Debug)]
pub(super) struct LayerProducts {
    layers: Vec<ProductsOfLayer>,
    batch: usize,
}

#[derive(Debug)]
struct ProductsOfLayer {
    forward: Product,
    /// Whether it adds the bias and rectifies.
    bias_fused: bool,
    /// By the input.
    input_gradient: Option<Product>,
    /// By the weight.
    weight_gradient: Product,
    /// Whether the product of the layer behind cuts this layer's gradient and sums it.
    cut: bool,
    brief: bool,
}

impl Activations {
    pub(super) fn new(memory: &mut Memory, rows: usize, width: usize, brief: bool) -> Result<Self> {
        let floats = memory.buffer((rows * width * 4) as u64)?;
        let brains = brief.then(|| memory.buffer((rows * width * 2) as u64)).transpose()?;
        Ok(Self { floats, brains, width })
    }

    /// Bytes that such a matrix takes.
    pub(super) fn bytes(rows: usize, width: usize, brief: bool) -> u64 {
        (rows * width * if brief { 6 } else { 4 } + 512) as u64
    }

    /// The floats of so many rows.
    pub(super) fn floats(&self, rows: usize) -> Result<Buffer> {
        Ok(self.floats.part(0, (rows * self.width * 4) as u64)?)
    }

    /// The floats as a matrix of so many rows.
    pub(super) fn matrix<'a>(&self, floats: &'a Buffer, rows: usize) -> Matrix<'a> {
        Matrix { floats, rows: rows as u64, width: self.width as u32 }
    }

    /// What a product of that kind takes of so many rows.
    fn side(&self, rows: usize, brief: bool) -> Result<Buffer> {
        match &self.brains {
            Some(brains) if brief => Ok(brains.part(0, (rows * self.width * 2) as u64)?),
            _ => self.floats(rows),
        }
    }

    /// Brings the brain floats, if there are any, to what the floats are.
    pub(super) fn shorten(&self, machine: &Machine, rows: usize) -> Result<()> {
        if self.brains.is_some() {
            let (floats, brains) = (self.floats(rows)?, self.side(rows, true)?);
            machine.kernels.to_brain(&machine.compute, &floats, &brains)?;
        }
        Ok(())
    }

    /// Everything zero.
    pub(super) fn clear(&self, machine: &Machine) -> Result<()> {
        Ok(self.floats.fill(&machine.compute, 0)?)
    }
}

impl Layers {
    /// Layers of those widths, input first, whose first weight is that parameter.
    pub(super) fn new(
        machine: &Machine,
        memory: &mut Memory,
        widths: &[usize],
        parameter: usize,
        batch_max: usize,
        last_rectified: bool,
    ) -> Result<Self> {
        let brief = machine.brief();
        let last = widths.len() - 2;
        let layer = |(l, &width): (usize, &usize)| {
            let width = padded(width);
            let rectified = last_rectified || l < last;
            let mask = (rectified && l < last)
                .then(|| memory.buffer(mask_bytes(batch_max as u64, width as u64)))
                .transpose()?;
            let mut activations = || Activations::new(memory, batch_max, width, brief);
            let (output, gradient) = (activations()?, activations()?);
            gradient.clear(machine)?; // columns that nobody writes are zero
            Ok(Layer { parameter: parameter + 2 * l, rectified, output, gradient, mask })
        };
        let layers = widths[1..].iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let scratch = memory.buffer(scratch_bytes(widths, batch_max))?;
        let trial = memory.buffer(largest_weight_bytes(widths))?;
        Ok(Self { layers, inputs: padded(widths[0]), scratch, trial })
    }

    /// Bytes that they take.
    pub(super) fn bytes(widths: &[usize], batch_max: usize, brief: bool) -> u64 {
        let layer = |&width: &usize| {
            let width = padded(width);
            let mask = mask_bytes(batch_max as u64, width as u64) + 256;
            2 * Activations::bytes(batch_max, width, brief) + mask
        };
        let beside = scratch_bytes(widths, batch_max) + largest_weight_bytes(widths) + 2 * 256;
        widths[1..].iter().map(layer).sum::<u64>() + beside
    }

    /// What comes out of the last layer, and its gradient.
    pub(super) fn end(&self) -> (&Activations, &Activations) {
        let last = self.layers.last().expect("an MLP has a layer");
        (&last.output, &last.gradient)
    }

    /// Its products for batches of that size, each tried once. It writes over outputs and
    /// gradients of layers, and over the gradient by the input.
    pub(super) fn plan(
        &self,
        machine: &Machine,
        arena: &Arena,
        batch: usize,
        ends: Ends<'_>,
    ) -> Result<LayerProducts> {
        let plan = |l: usize| {
            let plan = |precision| {
                let planning = Planning { machine, arena, batch, precision, trial: &self.trial };
                self.plan_layer(&planning, l, ends)
            };
            match plan(machine.precision) {
                // the library may know no way in brain floats for some shape
                Err(error) if machine.brief() => {
                    let what = format!("brain floats of {}", self.words_of(l));
                    machine.note_refused(&what, "32 bits", &error);
                    plan(Precision::F32)
                }
                planned => planned,
            }
        };
        let mut layers = (0..self.layers.len()).map(plan).collect::<Result<Vec<_>>>()?;
        for l in 1..self.layers.len() {
            self.plan_mask(machine, arena, batch, l, ends, &mut layers);
        }
        Ok(LayerProducts { layers, batch })
    }

    fn plan_layer(
        &self,
        planning: &Planning<'_>,
        l: usize,
        ends: Ends<'_>,
    ) -> Result<ProductsOfLayer> {
        let layer = &self.layers[l];
        let batch = planning.batch;
        let (m, n, k) = (batch as u64, layer.output.width as u64, self.inputs_of(l) as u64);
        let brief = planning.precision == Precision::Bf16;
        let weight = self.weight(planning.arena, layer, brief)?;
        let input = self.input(l, ends).side(batch, brief)?;
        let gradient = layer.gradient.side(batch, brief)?;
        let bias = planning.arena.part(&planning.arena.weights, layer.parameter + 1)?;
        let fused =
            if layer.rectified { Epilogue::BiasAndRelu(&bias) } else { Epilogue::Bias(&bias) };
        let output = layer.output.floats(batch)?;
        let sides = (&input, &weight, &output);
        let forward = |epilogue| planning.plan(Shape { m, n, k }, (false, true), epilogue, sides);
        let (forward, bias_fused) = match forward(fused) {
            Ok(product) => (product, true),
            Err(error) => {
                let what = format!("bias and ReLU of {}", self.words_of(l));
                planning.machine.note_refused(&what, "kernels", &error);
                (forward(Epilogue::None)?, false)
            }
        };
        let input_gradient = self
            .input_gradient(l, ends)
            .map(|target| {
                let shape = Shape { m, n: k, k: n };
                let sides = (&gradient, &weight, &target.floats(batch)?);
                planning.plan(shape, (false, false), Epilogue::None, sides)
            })
            .transpose()?;
        let shape = Shape { m: n, n: k, k: m };
        let sides = (&gradient, &input, &self.trial.part(0, n * k * 4)?);
        let weight_gradient = planning.plan(shape, (true, false), Epilogue::None, sides)?;
        let cut = false;
        Ok(ProductsOfLayer { forward, bias_fused, input_gradient, weight_gradient, cut, brief })
    }

    /// Lets the products of layer l - 1 forward and of layer l backward keep and take a mask, where
    /// the library can do both.
    fn plan_mask(
        &self,
        machine: &Machine,
        arena: &Arena,
        batch: usize,
        l: usize,
        ends: Ends<'_>,
        layers: &mut [ProductsOfLayer],
    ) {
        let before = &self.layers[l - 1];
        let Some(mask) = &before.mask else { return };
        let planned = || -> Result<(Product, Product)> {
            let width = before.output.width as u64;
            let mask = &mask.part(0, mask_bytes(batch as u64, width))?;
            let planning = |l: usize| {
                let brief = layers[l].brief;
                let precision =
                    if brief || !machine.brief() { machine.precision } else { Precision::F32 };
                Planning { machine, arena, batch, precision, trial: &self.trial }
            };
            let bias = &arena.part(&arena.weights, before.parameter + 1)?;
            let shape = Shape { m: batch as u64, n: width, k: self.inputs_of(l - 1) as u64 };
            let epilogue = Epilogue::BiasAndReluWithMask { bias, mask };
            let input = self.input(l - 1, ends).side(batch, layers[l - 1].brief)?;
            let weight = self.weight(arena, before, layers[l - 1].brief)?;
            let sides = (&input, &weight, &before.output.floats(batch)?);
            let forward = planning(l - 1).plan(shape, (false, true), epilogue, sides)?;
            let bias_gradient = &arena.part(&arena.gradient, before.parameter + 1)?;
            let outputs = self.layers[l].output.width as u64;
            let shape = Shape { m: batch as u64, n: width, k: outputs };
            let epilogue = Epilogue::ReluGradient { mask, bias_gradient };
            let gradient = self.layers[l].gradient.side(batch, layers[l].brief)?;
            let weight = self.weight(arena, &self.layers[l], layers[l].brief)?;
            let sides = (&gradient, &weight, &before.gradient.floats(batch)?);
            Ok((forward, planning(l).plan(shape, (false, false), epilogue, sides)?))
        };
        match planned() {
            Ok((forward, backward)) => {
                layers[l - 1].forward = forward;
                layers[l - 1].bias_fused = true;
                layers[l - 1].cut = true;
                layers[l].input_gradient = Some(backward);
            }
            Err(error) => {
                let what = format!("gradient of the ReLU of {}", self.words_of(l - 1));
                machine.note_refused(&what, "kernels", &error);
            }
        }
    }

    fn words_of(&self, l: usize) -> String {
        format!("a layer of {} inputs, {} outputs", self.inputs_of(l), self.layers[l].output.width)
    }

    fn inputs_of(&self, l: usize) -> usize {
        l.checked_sub(1).map_or(self.inputs, |before| self.layers[before].output.width)
    }

    /// What goes into a layer, and the gradient by it where it is wanted.
    fn input<'a>(&'a self, l: usize, ends: Ends<'a>) -> &'a Activations {
        l.checked_sub(1).map_or(ends.input, |before| &self.layers[before].output)
    }

    fn input_gradient<'a>(&'a self, l: usize, ends: Ends<'a>) -> Option<&'a Activations> {
        l.checked_sub(1).map_or(ends.input_gradient, |before| Some(&self.layers[before].gradient))
    }

    /// From the input, whose brain floats are there, to the output of every layer.
    pub(super) fn forward(
        &self,
        machine: &Machine,
        arena: &Arena,
        products: &LayerProducts,
        input: &Activations,
    ) -> Result<()> {
        let batch = products.batch;
        let mut input = input;
        for (layer, planned) in self.layers.iter().zip(&products.layers) {
            let output = layer.output.floats(batch)?;
            let weight = self.weight(arena, layer, planned.brief)?;
            let side = input.side(batch, planned.brief)?;
            planned.forward.run(&machine.compute, &side, &weight, &output)?;
            if !planned.bias_fused {
                let bias = arena.part(&arena.weights, layer.parameter + 1)?;
                let values = layer.output.matrix(&output, batch);
                machine.kernels.add_bias(&machine.compute, values, &bias, layer.rectified)?;
            }
            layer.output.shorten(machine, batch)?;
            input = &layer.output;
        }
        Ok(())
    }

    /// From the gradient by the last layer's output, which the caller has put in place, to the
    /// gradient by every layer's value before its ReLU, to those of the biases, and to that by the
    /// input where there is a place for it.
    pub(super) fn backward(
        &self,
        machine: &Machine,
        arena: &Arena,
        products: &LayerProducts,
        input_gradient: Option<&Activations>,
    ) -> Result<()> {
        let batch = products.batch;
        for (l, (layer, planned)) in self.layers.iter().zip(&products.layers).enumerate().rev() {
            let gradient = layer.gradient.floats(batch)?;
            if !planned.cut {
                let output = layer.rectified.then(|| layer.output.floats(batch)).transpose()?;
                let bias_gradient = arena.part(&arena.gradient, layer.parameter + 1)?;
                machine.kernels.cut_and_sum(
                    &machine.compute,
                    layer.gradient.matrix(&gradient, batch),
                    output.as_ref(),
                    &self.scratch,
                    &bias_gradient,
                )?;
            }
            layer.gradient.shorten(machine, batch)?;
            let target = match l.checked_sub(1) {
                Some(before) => Some(&self.layers[before].gradient),
                None => input_gradient,
            };
            if let (Some(target), Some(product)) = (target, &planned.input_gradient) {
                let weight = self.weight(arena, layer, planned.brief)?;
                let side = layer.gradient.side(batch, planned.brief)?;
                product.run(&machine.compute, &side, &weight, &target.floats(batch)?)?;
            }
        }
        Ok(())
    }

    /// The weights' gradients, from what went forward and backward.
    pub(super) fn weight_gradients(
        &self,
        machine: &Machine,
        arena: &Arena,
        products: &LayerProducts,
        input: &Activations,
    ) -> Result<()> {
        let batch = products.batch;
        let mut input = input;
        for (layer, planned) in self.layers.iter().zip(&products.layers) {
            let target = arena.part(&arena.gradient, layer.parameter)?;
            let left = layer.gradient.side(batch, planned.brief)?;
            let right = input.side(batch, planned.brief)?;
            planned.weight_gradient.run(&machine.compute, &left, &right, &target)?;
            input = &layer.output;
        }
        Ok(())
    }

    fn weight(&self, arena: &Arena, layer: &Layer, brief: bool) -> Result<Buffer> {
        match arena.brain_part(layer.parameter)? {
            Some(brains) if brief => Ok(brains),
            _ => arena.part(&arena.weights, layer.parameter),
        }
    }
}

/// What products are planned for.
struct Planning<'a> {
    machine: &'a Machine,
    arena: &'a Arena,
    batch: usize,
    precision: Precision,
    trial: &'a Buffer,
}

impl Planning<'_> {
    /// A product that the library knows how to make: it has been made once, of these sides.
    fn plan(
        &self,
        shape: Shape,
        (a_transposed, b_transposed): (bool, bool),
        epilogue: Epilogue<'_>,
        sides: (&Buffer, &Buffer, &Buffer),
    ) -> Result<Product> {
        let precision = self.precision;
        let wide = true;
        let operation = Operation { shape, a_transposed, b_transposed, precision, wide, epilogue };
        let Machine { products, workspace, compute, .. } = self.machine;
        let product = Product::plan_operation(products, operation, workspace)?;
        product.try_on(compute, sides, self.trial)?;
        Ok(product)
    }
}

fn largest_weight_bytes(widths: &[usize]) -> u64 {
    let weight = |pair: &[usize]| (padded(pair[0]) * padded(pair[1]) * 4) as u64;
    widths.windows(2).map(weight).max().unwrap_or(0)
}

fn scratch_bytes(widths: &[usize], batch_max: usize) -> u64 {
    let widest = widths[1..].iter().map(|&width| padded(width)).max().unwrap_or(0);
    (batch_max.div_ceil(STRETCH as usize) * widest * 4) as u64
}
