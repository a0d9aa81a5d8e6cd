//! Builds graphs from layers, so that an architecture reads like its diagram.
//!
//! Every method adds nodes and returns the name of what they compute. Nodes are named by scope
//! ("layers.3/attention/…"), which is what profilers and error messages of the runtimes show.

use super::{Attribute, Dim, Element, Graph, Initializer, Layout, Node, ValueInfo, Values};

/// Name of a tensor in the graph being built.
pub type ValueName = String;

/// A graph being built.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    scope: String,
}

impl Builder {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Builder {
            graph: Graph {
                name: name.into(),
                ..Graph::default()
            },
            scope: String::new(),
        }
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// Names the nodes that follow, until the next call.
    pub fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    // --- edges and constants

    /// A graph input.
    pub fn input<const N: usize>(
        &mut self,
        name: &str,
        element: Element,
        dims: [Dim; N],
    ) -> ValueName {
        self.graph.inputs.push(ValueInfo {
            name: name.into(),
            element,
            dims: dims.into(),
        });
        name.into()
    }

    /// A graph output: gives `value` its published name.
    pub fn output<const N: usize>(
        &mut self,
        name: &str,
        value: &ValueName,
        element: Element,
        dims: [Dim; N],
    ) {
        self.graph.nodes.push(Node {
            op: "Identity",
            name: name.into(),
            inputs: vec![value.clone()],
            outputs: vec![name.into()],
            attributes: Vec::new(),
        });
        self.graph.outputs.push(ValueInfo {
            name: name.into(),
            element,
            dims: dims.into(),
        });
    }

    /// A checkpoint tensor as it is stored. Requested twice, it is still one initializer.
    pub fn weight(&mut self, tensor: &str, dims: &[usize]) -> ValueName {
        let values = Values::Tensor {
            tensor: tensor.into(),
            layout: Layout::Stored,
        };
        self.initializer(tensor.into(), Element::F32, dims, values)
    }

    /// A matrix stored [out, in], turned to [in, out]; it keeps its name, so that a graph's weights
    /// can be compared with the checkpoint.
    pub fn matrix(&mut self, tensor: &str, [out, r#in]: [usize; 2]) -> ValueName {
        let values = Values::Tensor {
            tensor: tensor.into(),
            layout: Layout::Transposed,
        };
        self.initializer(tensor.into(), Element::F32, &[r#in, out], values)
    }

    /// A constant of floats.
    pub fn floats(&mut self, dims: &[usize], values: &[f32]) -> ValueName {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.literal(Element::F32, dims, bytes)
    }

    /// A float scalar.
    pub fn float(&mut self, value: f32) -> ValueName {
        self.floats(&[], &[value])
    }

    /// A list of integers, as shapes and axes are.
    pub fn ints(&mut self, values: &[i64]) -> ValueName {
        self.literal(
            Element::I64,
            &[values.len()],
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )
    }

    /// An integer scalar; some operators do not accept a list of one.
    pub fn int(&mut self, value: i64) -> ValueName {
        self.literal(Element::I64, &[], value.to_le_bytes().into())
    }

    /// Equal constants are one initializer.
    fn literal(&mut self, element: Element, dims: &[usize], bytes: Vec<u8>) -> ValueName {
        let values = Values::Literal(bytes);
        let same = |known: &&Initializer| {
            known.element == element && known.dims == dims && known.values == values
        };
        if let Some(known) = self.graph.initializers.iter().find(same) {
            return known.name.clone();
        }
        let name = format!("constant.{}", self.graph.initializers.len());
        self.initializer(name, element, dims, values)
    }

    fn initializer(
        &mut self,
        name: String,
        element: Element,
        dims: &[usize],
        values: Values,
    ) -> ValueName {
        if !self
            .graph
            .initializers
            .iter()
            .any(|known| known.name == name)
        {
            self.graph.initializers.push(Initializer {
                name: name.clone(),
                element,
                dims: dims.into(),
                values,
            });
        }
        name
    }

    // --- operators

    /// Any operator with one output.
    pub fn op(
        &mut self,
        op: &'static str,
        inputs: &[&ValueName],
        attributes: &[(&'static str, Attribute)],
    ) -> ValueName {
        self.ops(op, inputs, attributes, 1).remove(0)
    }

    fn ops(
        &mut self,
        op: &'static str,
        inputs: &[&ValueName],
        attributes: &[(&'static str, Attribute)],
        outputs: usize,
    ) -> Vec<ValueName> {
        // The node's number makes its name unique whatever the scope.
        let name = format!("{}/{op}.{}", self.scope, self.graph.nodes.len());
        let outputs: Vec<ValueName> = (0..outputs)
            .map(|i| {
                if i == 0 {
                    name.clone()
                } else {
                    format!("{name}:{i}")
                }
            })
            .collect();
        let inputs = inputs.iter().map(|&input| input.clone()).collect();
        self.graph.nodes.push(Node {
            op,
            name,
            inputs,
            outputs: outputs.clone(),
            attributes: attributes.to_vec(),
        });
        outputs
    }

    /// a + b, broadcast.
    pub fn add(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        self.op("Add", &[a, b], &[])
    }

    /// a · b element by element, broadcast.
    pub fn mul(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        self.op("Mul", &[a, b], &[])
    }

    /// Matrix product over the last two dimensions, broadcast over the others.
    pub fn matmul(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        self.op("MatMul", &[a, b], &[])
    }

    /// x · Wᵀ with W stored [out, in].
    pub fn linear(&mut self, x: &ValueName, tensor: &str, dims: [usize; 2]) -> ValueName {
        let weight = self.matrix(tensor, dims);
        self.matmul(x, &weight)
    }

    /// x · Wᵀ + b, from `{layer}.weight` [out, in] and `{layer}.bias`.
    pub fn linear_bias(&mut self, x: &ValueName, layer: &str, dims: [usize; 2]) -> ValueName {
        let product = self.linear(x, &format!("{layer}.weight"), dims);
        let bias = self.weight(&format!("{layer}.bias"), &dims[..1]);
        self.add(&product, &bias)
    }

    /// Rows of a table.
    pub fn gather(&mut self, table: &ValueName, ids: &ValueName) -> ValueName {
        self.op("Gather", &[table, ids], &[("axis", Attribute::Int(0))])
    }

    /// The same values in another shape; 0 keeps a dimension, -1 is what is left.
    pub fn reshape(&mut self, x: &ValueName, dims: &[i64]) -> ValueName {
        let dims = self.ints(dims);
        self.op("Reshape", &[x, &dims], &[])
    }

    /// Dimensions in another order.
    pub fn transpose(&mut self, x: &ValueName, order: &[i64]) -> ValueName {
        self.op(
            "Transpose",
            &[x],
            &[("perm", Attribute::Ints(order.into()))],
        )
    }

    /// A new dimension of size 1.
    pub fn unsqueeze(&mut self, x: &ValueName, axis: i64) -> ValueName {
        let axes = self.ints(&[axis]);
        self.op("Unsqueeze", &[x, &axes], &[])
    }

    /// Concatenation along an axis.
    pub fn concat(&mut self, parts: &[&ValueName], axis: i64) -> ValueName {
        self.op("Concat", parts, &[("axis", Attribute::Int(axis))])
    }

    /// The two halves of the last dimension.
    pub fn halves(&mut self, x: &ValueName, width: usize) -> [ValueName; 2] {
        let half = (width / 2) as i64;
        let sizes = self.ints(&[half, half]);
        let mut parts = self.ops("Split", &[x, &sizes], &[("axis", Attribute::Int(-1))], 2);
        let second = parts.remove(1);
        [parts.remove(0), second]
    }

    /// Softmax over the last dimension.
    pub fn softmax(&mut self, x: &ValueName) -> ValueName {
        self.op("Softmax", &[x], &[("axis", Attribute::Int(-1))])
    }

    // --- layers

    /// LayerNorm over the last dimension, from `{layer}.weight` and `{layer}.bias`.
    pub fn layer_norm(&mut self, x: &ValueName, layer: &str, width: usize, eps: f32) -> ValueName {
        let scale = self.weight(&format!("{layer}.weight"), &[width]);
        let bias = self.weight(&format!("{layer}.bias"), &[width]);
        self.op(
            "LayerNormalization",
            &[x, &scale, &bias],
            &[
                ("axis", Attribute::Int(-1)),
                ("epsilon", Attribute::Float(eps)),
            ],
        )
    }

    /// x / sqrt(mean(x²) + eps) · w over the last dimension, in the form that runtimes recognise
    /// and fuse.
    pub fn rms_norm(&mut self, x: &ValueName, tensor: &str, width: usize, eps: f32) -> ValueName {
        let two = self.float(2.0);
        let square = self.op("Pow", &[x, &two], &[]);
        let axes = self.ints(&[-1]);
        let mean = self.op(
            "ReduceMean",
            &[&square, &axes],
            &[("keepdims", Attribute::Int(1))],
        );
        let eps = self.float(eps);
        let shifted = self.add(&mean, &eps);
        let root = self.op("Sqrt", &[&shifted], &[]);
        let normal = self.op("Div", &[x, &root], &[]);
        let scale = self.weight(tensor, &[width]);
        self.mul(&normal, &scale)
    }

    /// GELU by its tanh form.
    pub fn gelu_tanh(&mut self, x: &ValueName) -> ValueName {
        self.op("Gelu", &[x], &[("approximate", Attribute::Text("tanh"))])
    }

    /// x · sigmoid(x).
    pub fn silu(&mut self, x: &ValueName) -> ValueName {
        let gate = self.op("Sigmoid", &[x], &[]);
        self.mul(x, &gate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(graph: &Graph) -> String {
        let line = |node: &Node| {
            format!(
                "{} = {}({})\n",
                node.outputs.join(", "),
                node.op,
                node.inputs.join(", ")
            )
        };
        graph.nodes.iter().map(line).collect()
    }

    #[test]
    fn layers_read_as_their_operators() {
        let mut build = Builder::new("layers");
        let x = build.input("x", Element::F32, ["batch".into(), 4.into()]);
        build.scope("mlp");
        let normal = build.rms_norm(&x, "norm.weight", 4, 1e-5);
        let y = build.linear_bias(&normal, "fc", [8, 4]);
        let y = build.silu(&y);
        build.output("y", &y, Element::F32, ["batch".into(), 8.into()]);
        insta::assert_snapshot!(listing(&build.finish()), @r"
        mlp/Pow.0 = Pow(x, constant.0)
        mlp/ReduceMean.1 = ReduceMean(mlp/Pow.0, constant.1)
        mlp/Add.2 = Add(mlp/ReduceMean.1, constant.2)
        mlp/Sqrt.3 = Sqrt(mlp/Add.2)
        mlp/Div.4 = Div(x, mlp/Sqrt.3)
        mlp/Mul.5 = Mul(mlp/Div.4, norm.weight)
        mlp/MatMul.6 = MatMul(mlp/Mul.5, fc.weight)
        mlp/Add.7 = Add(mlp/MatMul.6, fc.bias)
        mlp/Sigmoid.8 = Sigmoid(mlp/Add.7)
        mlp/Mul.9 = Mul(mlp/Add.7, mlp/Sigmoid.8)
        y = Identity(mlp/Mul.9)
        ");
    }

    #[test]
    fn equal_constants_and_equal_weights_are_stored_once() {
        let mut build = Builder::new("shared");
        assert_eq!(build.ints(&[0, -1]), build.ints(&[0, -1]));
        assert_ne!(build.int(1), build.ints(&[1]));
        assert_eq!(build.weight("w", &[3]), build.weight("w", &[3]));
        assert_eq!(build.finish().initializers.len(), 4);
    }
}
