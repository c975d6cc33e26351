//! Q, K and V from a safetensors file, and the header of one with the output.
//!
//! The header is read here, and not with the crate `safetensors`, which refuses the whole file where one tensor has an element type
//! that it does not know. What belongs to somebody else decides nothing: only the entries `q`, `k` and `v` are looked into, and `mask` and
//! `bias` where they are asked for, and only their bytes are read.

use anyhow::{Context, Result, anyhow, bail, ensure};
use half::{bf16, f16};
use int_flash_attention::{DType, HostBias, HostData, HostMask, HostTensor, MaskKind, Order, Output, TensorLayout};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

/// The largest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// Other tensors that an error names.
const NAMES_SHOWN: usize = 8;
/// Characters of a name or a word that an error shows.
const WORD_SHOWN: usize = 40;

/// The inputs of the job.
pub struct Inputs {
    /// Queries.
    pub q: HostTensor,
    /// Keys.
    pub k: HostTensor,
    /// Values.
    pub v: HostTensor,
    /// Which keys are kept, if it was asked for.
    pub mask: Option<Mask>,
    /// What is added to the scores, if it was asked for.
    pub bias: Option<Bias>,
}

/// The tensors that are asked for beside `q`, `k` and `v`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// `mask`.
    pub mask: bool,
    /// `bias`.
    pub bias: bool,
}

/// A mask, a byte for each key.
pub struct Mask {
    dims: [usize; 4],
    data: Vec<u8>,
}

impl Mask {
    /// As `attention` takes it.
    #[must_use]
    pub fn host(&self) -> HostMask<'_> {
        HostMask { dims: self.dims, kind: MaskKind::Bytes, data: &self.data }
    }
}

/// A bias.
pub struct Bias {
    dims: [usize; 4],
    data: HostData,
}

impl Bias {
    /// As `attention` takes it.
    #[must_use]
    pub fn host(&self) -> HostBias<'_> {
        HostBias { dims: self.dims, data: &self.data }
    }
}

/// Reads the tensors `q`, `k` and `v`; each has four dimensions in `order`, and only finite values.
///
/// # Errors
/// A file that cannot be read, is no safetensors file or ends too early; a tensor that is missing, of another type or of other
/// dimensions.
pub fn read(path: &Path, order: Order, more: Wanted) -> Result<Inputs> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let about = file.metadata().with_context(cannot)?;
    // The kernel's own files say that they are empty.
    let inputs = if about.is_file() && about.len() > 0 {
        parse(&mut file, order, more)
    } else {
        let bytes = stream(&mut file).with_context(cannot)?;
        parse(&mut Cursor::new(bytes), order, more)
    };
    inputs.with_context(|| format!("in {}", path.display()))
}

/// All of a FIFO or a device, or its first bytes where these begin no file of tensors: some devices have no end.
fn stream(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(9).read_to_end(&mut bytes)?;
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if length <= MAX_HEADER && bytes.last() == Some(&b'{') {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// [`read`] of what is open already.
///
/// # Errors
/// As there.
pub fn parse(source: &mut (impl Read + Seek), order: Order, more: Wanted) -> Result<Inputs> {
    let end = source.seek(SeekFrom::End(0))?;
    source.rewind()?;
    let wanted = [true, true, true, more.mask, more.bias];
    let (header, data) = header(source, end, wanted)?;
    let entry = |at: usize| match &header.found[at] {
        Some(entry) => Ok(entry),
        None => Err(anyhow!("there is no tensor `{}`; the file has {}", WANTED[at], header.names())),
    };
    let mut read = |at: usize| -> Result<HostTensor> {
        let name = WANTED[at];
        entry(at)?.read(source, name, data, end, order).with_context(|| format!("tensor `{name}`"))
    };
    let (q, k, v) = (read(0)?, read(1)?, read(2)?);
    let mask = match more.mask {
        true => Some(entry(3)?.read_mask(source, data, end).context("tensor `mask`")?),
        false => None,
    };
    let bias = match more.bias {
        true => Some(entry(4)?.read_bias(source, data, end).context("tensor `bias`")?),
        false => None,
    };
    let inputs = Inputs { q, k, v, mask, bias };
    for (name, other) in [("k", &inputs.k), ("v", &inputs.v)] {
        if other.dtype() != inputs.q.dtype() {
            bail!("q is {} but {name} is {}; all three must have one dtype", inputs.q.dtype(), other.dtype());
        }
    }
    Ok(inputs)
}

fn not_whole(why: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("this is not a whole safetensors file ({})", shown(&why.to_string(), 5 * WORD_SHOWN))
}

/// Text from a file, in one line of bounded length.
fn shown(text: &str, longest: usize) -> String {
    let mut out: String = text.chars().take(longest).flat_map(char::escape_debug).collect();
    if text.chars().nth(longest).is_some() {
        out.push('…');
    }
    out
}

const WANTED: [&str; 5] = ["q", "k", "v", "mask", "bias"];

/// The entries asked for, and what else there is.
#[derive(Default)]
struct Header {
    found: [Option<Entry>; WANTED.len()],
    /// Which of them are looked into.
    wanted: [bool; WANTED.len()],
    /// The first names, in the alphabet's order.
    first: BTreeSet<String>,
    tensors: usize,
}

/// One tensor of the header.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The header, and where the data begins.
fn header(source: &mut impl Read, end: u64, wanted: [bool; WANTED.len()]) -> Result<(Header, u64)> {
    let mut length = [0; 8];
    source.read_exact(&mut length).map_err(|_| not_whole("it is shorter than a header's length"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > end.saturating_sub(8) {
        return Err(not_whole(format!("its header should have {length} bytes")));
    }
    let mut text = Vec::new();
    text.try_reserve_exact(length as usize).with_context(|| format!("no memory for a header of {length} bytes"))?;
    source.take(length).read_to_end(&mut text)?;
    if text.first() != Some(&b'{') {
        return Err(not_whole("its header is not JSON"));
    }
    let mut json = serde_json::Deserializer::from_slice(&text);
    let header =
        json.deserialize_map(Header { wanted, ..Header::default() }).and_then(|header| json.end().map(|()| header));
    Ok((header.map_err(not_whole)?, 8 + length))
}

impl<'de> Visitor<'de> for Header {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a header of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if let Some(at) = WANTED.iter().position(|wanted| *wanted == name).filter(|&at| self.wanted[at]) {
                if self.found[at].replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom(format_args!("tensor `{name}` stands twice in it")));
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            if name != "__metadata__" {
                self.tensors += 1;
                self.first.insert(name);
                if self.first.len() > NAMES_SHOWN {
                    self.first.pop_last();
                }
            }
        }
        Ok(self)
    }
}

impl Header {
    fn names(&self) -> String {
        if self.tensors == 0 {
            return "none".into();
        }
        let names: Vec<_> = self.first.iter().map(|name| shown(name, WORD_SHOWN)).collect();
        let more = self.tensors.saturating_sub(names.len());
        names.join(", ") + &if more == 0 { String::new() } else { format!(" and {more} more") }
    }
}

impl Entry {
    fn read(
        &self,
        source: &mut (impl Read + Seek),
        name: &'static str,
        data: u64,
        file_end: u64,
        order: Order,
    ) -> Result<HostTensor> {
        let dtype = match self.dtype.as_str() {
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "F32" => DType::F32,
            other => bail!("it is {}; allowed are F16, BF16 and F32", shown(other, WORD_SHOWN)),
        };
        let rank = self.shape.len();
        ensure!(
            rank <= 8,
            "it has {rank} dimensions; four are needed, [batch, heads, tokens, head_dim] or [batch, tokens, heads, head_dim]"
        );
        let layout = TensorLayout::from_dims(&self.shape, order)?;
        let [begin, end] = self.data_offsets;
        let bytes = (layout.span() * dtype.size()) as u64;
        if end.checked_sub(begin) != Some(bytes) {
            return Err(not_whole(format!("tensor `{name}` of {bytes} bytes lies at bytes {begin} to {end}")));
        }
        if end > file_end - data {
            return Err(not_whole(format!("tensor `{name}` ends at byte {end} of {}", file_end - data)));
        }
        source.seek(SeekFrom::Start(data + begin))?;
        let tensor = match dtype {
            DType::F16 => HostTensor::new(values::<f16>(source, layout.span())?, layout),
            DType::BF16 => HostTensor::new(values::<bf16>(source, layout.span())?, layout),
            DType::F32 => HostTensor::new(values::<f32>(source, layout.span())?, layout),
        }?;
        tensor.check_finite(name)?;
        Ok(tensor)
    }
}

impl Entry {
    fn read_mask(&self, source: &mut (impl Read + Seek), data: u64, file_end: u64) -> Result<Mask> {
        if !["BOOL", "U8"].contains(&self.dtype.as_str()) {
            bail!("it is {}; allowed are BOOL and U8", shown(&self.dtype, WORD_SHOWN));
        }
        let (dims, len) = self.seek(source, 1, data, file_end)?;
        Ok(Mask { dims, data: values(source, len)? })
    }

    fn read_bias(&self, source: &mut (impl Read + Seek), data: u64, file_end: u64) -> Result<Bias> {
        let size = match self.dtype.as_str() {
            "F16" | "BF16" => 2,
            "F32" => 4,
            other => bail!("it is {}; allowed are F16, BF16 and F32", shown(other, WORD_SHOWN)),
        };
        let (dims, len) = self.seek(source, size, data, file_end)?;
        let data = match self.dtype.as_str() {
            "F16" => HostData::F16(values(source, len)?),
            "BF16" => HostData::BF16(values(source, len)?),
            _ => HostData::F32(values(source, len)?),
        };
        Ok(Bias { dims, data })
    }

    /// Stands at the first element of four dimensions of elements of `size` bytes: the dimensions, and how many elements there are.
    fn seek(&self, source: &mut impl Seek, size: usize, data: u64, file_end: u64) -> Result<([usize; 4], usize)> {
        let dims: [usize; 4] = self.shape.as_slice().try_into().map_err(|_| {
            anyhow!("it has {} dimensions; four are needed, [batch, heads, seqlen_q, seqlen_kv]", self.shape.len())
        })?;
        let bytes = dims.iter().try_fold(size, |bytes, &dim| bytes.checked_mul(dim));
        let bytes = bytes.with_context(|| format!("its bytes do not fit into 64 bits, {dims:?}"))?;
        let [begin, end] = self.data_offsets;
        if end.checked_sub(begin) != Some(bytes as u64) {
            return Err(not_whole(format!("a tensor of {bytes} bytes lies at bytes {begin} to {end}")));
        }
        if end > file_end - data {
            return Err(not_whole(format!("it ends at byte {end} of {}", file_end - data)));
        }
        source.seek(SeekFrom::Start(data + begin))?;
        Ok((dims, bytes / size))
    }
}

/// As many elements from where `source` stands.
fn values<T>(source: &mut impl Read, len: usize) -> Result<Vec<T>>
where
    T: bytemuck::Pod,
{
    let memory = || format!("there is no memory for its {} bytes", len * size_of::<T>());
    let mut values: Vec<T> = bytemuck::allocation::try_zeroed_vec(len).ok().with_context(memory)?;
    source.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => not_whole("it became shorter while it was read"),
        _ => error.into(),
    })?;
    Ok(values)
}

/// What stands before the bytes of `o` in `order` and, where there is one, of `lse` as float32 [batch, heads, seqlen_q].
#[must_use]
pub fn output_header(output: &Output, order: Order) -> Vec<u8> {
    let shape = output.o.shape();
    let dtype = match output.o.dtype() {
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::F32 => "F32",
    };
    let end = output.o.bytes().len();
    let mut entries =
        json!({ "o": { "dtype": dtype, "shape": output.o.layout().dims(order), "data_offsets": [0, end] } });
    if let Some(lse) = &output.lse {
        let rows = [shape.batch, shape.heads, shape.seqlen];
        entries["lse"] = json!({ "dtype": "F32", "shape": rows, "data_offsets": [end, end + 4 * lse.len()] });
    }
    let mut text = entries.to_string();
    // The data begins at a multiple of 8.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.into_bytes());
    header
}
