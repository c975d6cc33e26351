//! Quantized operands in a GPU's memory.

use super::launch::Launch;
use super::memory::Checked;
use super::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::Result;
use crate::problem::AttentionProblem;
use crate::quantized::check_packing;
use crate::quantized::{HostK, HostQ, HostQuantized, HostV, Lengths, Quantized, QuantizedK, QuantizedQ, QuantizedV};
pub(super) use crate::quantized::{check_q, check_scheme};
use crate::shape::Shape;

/// Quantized queries that own their memory.
pub type DeviceQ = QuantizedQ<DeviceBuffer<i8>, DeviceBuffer<f32>>;
/// Quantized keys that own their memory.
pub type DeviceK = QuantizedK<DeviceBuffer<i8>, DeviceBuffer<f32>>;
/// Quantized values that own their memory.
pub type DeviceV = QuantizedV<DeviceBuffer<i8>, DeviceBuffer<f32>>;
/// Quantized operands that own their memory.
pub type DeviceOperands = Quantized<DeviceBuffer<i8>, DeviceBuffer<f32>>;

/// Quantized queries to be read.
pub type ViewQ<'a> = QuantizedQ<DeviceSlice<'a, i8>, DeviceSlice<'a, f32>>;
/// Quantized keys to be read.
pub type ViewK<'a> = QuantizedK<DeviceSlice<'a, i8>, DeviceSlice<'a, f32>>;
/// Quantized values to be read.
pub type ViewV<'a> = QuantizedV<DeviceSlice<'a, i8>, DeviceSlice<'a, f32>>;
/// Quantized operands to be read.
pub type ViewOperands<'a> = Quantized<DeviceSlice<'a, i8>, DeviceSlice<'a, f32>>;

/// Quantized queries to be written.
pub type ViewMutQ<'a> = QuantizedQ<DeviceSliceMut<'a, i8>, DeviceSliceMut<'a, f32>>;
/// Quantized keys to be written.
pub type ViewMutK<'a> = QuantizedK<DeviceSliceMut<'a, i8>, DeviceSliceMut<'a, f32>>;
/// Quantized values to be written.
pub type ViewMutV<'a> = QuantizedV<DeviceSliceMut<'a, i8>, DeviceSliceMut<'a, f32>>;
/// Quantized operands to be written.
pub type ViewMutOperands<'a> = Quantized<DeviceSliceMut<'a, i8>, DeviceSliceMut<'a, f32>>;

/// One operand's conversions between owner, views and the host. `$plain` are no arrays, `$field` are, and
/// `$optional` may be missing.
macro_rules! operand {
    (
        $owner:ident, $host:ident, $view:ident, $view_mut:ident, $base:ident;
        $($plain:ident),*; $($field:ident),*; $($optional:ident),*
    ) => {
        impl $owner {
            /// To be read by a kernel.
            #[must_use]
            pub fn view(&self) -> $view<'_> {
                $base {
                    $($plain: self.$plain,)*
                    $($field: self.$field.slice(),)*
                    $($optional: self.$optional.as_ref().map(DeviceBuffer::slice),)*
                }
            }

            /// To be written by a kernel.
            #[must_use]
            pub fn view_mut(&mut self) -> $view_mut<'_> {
                $base {
                    $($plain: self.$plain,)*
                    $($field: self.$field.slice_mut(),)*
                    $($optional: self.$optional.as_mut().map(DeviceBuffer::slice_mut),)*
                }
            }

            /// A copy in the host's memory, after everything that the GPU was given.
            ///
            /// # Errors
            /// What the driver says.
            pub fn to_host(&self) -> Result<$host> {
                Ok($base {
                    $($plain: self.$plain,)*
                    $($field: self.$field.to_vec()?,)*
                    $($optional: self.$optional.as_ref().map(DeviceBuffer::to_vec).transpose()?,)*
                })
            }
        }

        impl $view_mut<'_> {
            /// To be read by a kernel, after what was written.
            #[must_use]
            pub fn as_view(&self) -> $view<'_> {
                $base {
                    $($plain: self.$plain,)*
                    $($field: self.$field.as_slice(),)*
                    $($optional: self.$optional.as_ref().map(DeviceSliceMut::as_slice),)*
                }
            }
        }

        impl $host {
            /// A copy in a GPU's memory.
            ///
            /// # Errors
            /// Arrays of wrong lengths, or what the driver says.
            pub fn to_device(&self, gpu: &Gpu) -> Result<$owner> {
                self.check()?;
                Ok($base {
                    $($plain: self.$plain,)*
                    $($field: gpu.upload(&self.$field)?,)*
                    $($optional: self.$optional.as_ref().map(|values| gpu.upload(values)).transpose()?,)*
                })
            }
        }
    };
}

operand!(DeviceQ, HostQ, ViewQ, ViewMutQ, QuantizedQ; shape, scheme; data, scale; bias);
operand!(DeviceK, HostK, ViewK, ViewMutK, QuantizedK; shape, packed, scheme, format; data, scale, block_scale, offset;);
operand!(DeviceV, HostV, ViewV, ViewMutV, QuantizedV; shape, packed, scheme, format; data, scale, block_scale, unit;);

impl DeviceOperands {
    /// To be read by a kernel.
    #[must_use]
    pub fn view(&self) -> ViewOperands<'_> {
        Quantized { q: self.q.view(), k: self.k.view(), v: self.v.view() }
    }

    /// To be written by a kernel.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMutOperands<'_> {
        Quantized { q: self.q.view_mut(), k: self.k.view_mut(), v: self.v.view_mut() }
    }

    /// A copy in the host's memory, after everything that the GPU was given.
    ///
    /// # Errors
    /// What the driver says.
    pub fn to_host(&self) -> Result<HostQuantized> {
        Ok(Quantized { q: self.q.to_host()?, k: self.k.to_host()?, v: self.v.to_host()? })
    }
}

impl ViewMutOperands<'_> {
    /// To be read by a kernel, after what was written.
    #[must_use]
    pub fn as_view(&self) -> ViewOperands<'_> {
        Quantized { q: self.q.as_view(), k: self.k.as_view(), v: self.v.as_view() }
    }
}

impl HostQuantized {
    /// A copy in a GPU's memory.
    ///
    /// # Errors
    /// Arrays of wrong lengths, or what the driver says.
    pub fn to_device(&self, gpu: &Gpu) -> Result<DeviceOperands> {
        Ok(Quantized { q: self.q.to_device(gpu)?, k: self.k.to_device(gpu)?, v: self.v.to_device(gpu)? })
    }
}

/// The addresses of an operand's arrays, in the order of its fields.
pub(super) trait Addresses<const N: usize> {
    /// After shape, lengths, alignment and context have been checked.
    fn addresses(&self, launch: &Launch<'_>, shape: Shape, lengths: &Lengths) -> Result<[u64; N]>;
}

#[inline]
fn same_shape(name: &'static str, given: Shape, expected: Shape) -> Result<()> {
    AttentionProblem::check_shape(name, given, expected)
}

/// `data`, `scale`, `bias` (0 where it is not there).
impl<I: Checked, F: Checked> Addresses<3> for QuantizedQ<I, F> {
    #[inline]
    fn addresses(&self, launch: &Launch<'_>, shape: Shape, lengths: &Lengths) -> Result<[u64; 3]> {
        same_shape("q", self.shape, shape)?;
        let bias = self.bias.as_ref().map_or(Ok(0), |bias| bias.checked(launch, "q_bias", lengths.q_scale))?;
        Ok([
            self.data.checked(launch, "q", lengths.q_data)?,
            self.scale.checked(launch, "q_scale", lengths.q_scale)?,
            bias,
        ])
    }
}

/// `data`, `scale`, `block_scale`, `offset`.
impl<I: Checked, F: Checked> Addresses<4> for QuantizedK<I, F> {
    #[inline]
    fn addresses(&self, launch: &Launch<'_>, shape: Shape, lengths: &Lengths) -> Result<[u64; 4]> {
        same_shape("k", self.shape, shape)?;
        check_packing("k", self.packed, lengths.packed)?;
        Ok([
            self.data.checked(launch, "k", lengths.kv_data)?,
            self.scale.checked(launch, "k_scale", lengths.kv_scale)?,
            self.block_scale.checked(launch, "k_block_scale", lengths.blocks)?,
            self.offset.checked(launch, "k_offset", lengths.channels)?,
        ])
    }
}

/// `data`, `scale`, `block_scale`, `unit`.
impl<I: Checked, F: Checked> Addresses<4> for QuantizedV<I, F> {
    #[inline]
    fn addresses(&self, launch: &Launch<'_>, shape: Shape, lengths: &Lengths) -> Result<[u64; 4]> {
        same_shape("v", self.shape, shape)?;
        check_packing("v", self.packed, lengths.packed)?;
        Ok([
            self.data.checked(launch, "v", lengths.kv_data)?,
            self.scale.checked(launch, "v_scale", lengths.kv_scale)?,
            self.block_scale.checked(launch, "v_block_scale", lengths.blocks)?,
            self.unit.checked(launch, "v_unit", lengths.heads)?,
        ])
    }
}
