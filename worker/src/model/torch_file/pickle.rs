//! The part of the pickle language in which `torch.save` writes tensors. A pickle is a program: here it can make numbers, texts,
//! lists, dictionaries and tensors, and nothing that is not in this file is ever called.

use std::{collections::HashMap, rc::Rc};
use tch::Kind;

// More than any network has: the same long tuple may be the shape of many tensors, and each would be a copy.
const MAX_DIMENSIONS: usize = 16;

/// The numbers of one or more tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) kind: Kind,
    /// The name of the part `data/KEY`.
    pub(super) key: Rc<str>,
    count: u64,
}

/// A tensor's place in its storage, in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) storage: Storage,
    pub(super) offset: u64,
    /// From the first element to the last.
    pub(super) span: u64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

/// What stands on the stack. Containers are numbers of places, so that no depth of nesting is a depth of calls.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Mark,
    /// None, a truth value or a fraction: of no use here.
    Other,
    Whole(i64),
    Text(Rc<str>),
    Sequence(usize),
    Dict(usize),
    Callable(Callable),
    Storage(usize),
    Tensor(usize),
}

/// The only names that a pickle may import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageOf(Kind),
}

/// What a pickle made.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) top: Value,
    made: Made,
}

#[derive(Debug, Default)]
struct Made {
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<Stored>,
}

#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    made: Made,
}

fn import(module: &str, name: &str) -> Result<Callable, String> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Callable::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Callable::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Callable::RebuildParameter,
        ("torch", "DoubleStorage") => Callable::StorageOf(Kind::Double),
        ("torch", "FloatStorage") => Callable::StorageOf(Kind::Float),
        ("torch", "HalfStorage") => Callable::StorageOf(Kind::Half),
        ("torch", "BFloat16Storage") => Callable::StorageOf(Kind::BFloat16),
        ("torch", "LongStorage") => Callable::StorageOf(Kind::Int64),
        ("torch", "IntStorage") => Callable::StorageOf(Kind::Int),
        ("torch", "ShortStorage") => Callable::StorageOf(Kind::Int16),
        ("torch", "CharStorage") => Callable::StorageOf(Kind::Int8),
        ("torch", "ByteStorage") => Callable::StorageOf(Kind::Uint8),
        ("torch", "BoolStorage") => Callable::StorageOf(Kind::Bool),
        _ => {
            let shown = format!("{module}.{name}").escape_debug().take(120).collect::<String>();
            return Err(format!(
                "its pickle imports {shown}, which is refused because only tensors are read from such files; save the \
                 state_dict alone, or as safetensors"
            ));
        }
    })
}

/// The program's bytes that are not read yet.
struct Code<'a>(&'a [u8]);

impl<'a> Code<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.0.split_at_checked(count).ok_or("its pickle is cut")?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.0.iter().position(|byte| *byte == b'\n').ok_or("its pickle is cut")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| "its pickle holds a name that is no text".to_owned())
    }
}

impl Pickle {
    /// Runs a pickle of protocol 2.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let (mut code, mut machine) = (Code(bytes), Machine::default());
        loop {
            let at = bytes.len() - code.0.len();
            let opcode = code.byte()?;
            if opcode == b'.' {
                let top = machine.pop()?;
                return Ok(Self { top, made: machine.made });
            }
            machine.step(opcode, &mut code).map_err(|error| format!("{error} (byte {at} of its pickle)"))?;
        }
    }

    /// The items of a dictionary.
    pub(super) fn items(&self, value: &Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(at) => Some(&self.made.dicts[*at]),
            _ => None,
        }
    }

    pub(super) fn tensor(&self, at: usize) -> &Stored {
        &self.made.tensors[at]
    }
}

impl Machine {
    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "its pickle takes what is not there".to_owned())
    }

    /// Everything above the last mark.
    fn marked(&mut self) -> Result<Vec<Value>, String> {
        let at = self.stack.iter().rposition(|value| *value == Value::Mark).ok_or("its pickle lacks a mark")?;
        let above = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(above)
    }

    fn push_sequence(&mut self, values: Vec<Value>) {
        self.made.sequences.push(values);
        self.stack.push(Value::Sequence(self.made.sequences.len() - 1));
    }

    fn push_dict(&mut self) {
        self.made.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.made.dicts.len() - 1));
    }

    fn last(&mut self, count: usize) -> Result<Vec<Value>, String> {
        let at = self.stack.len().checked_sub(count).ok_or("its pickle takes what is not there")?;
        Ok(self.stack.split_off(at))
    }

    /// One instruction. The letters are those of Python's `pickletools`.
    fn step(&mut self, opcode: u8, code: &mut Code<'_>) -> Result<(), String> {
        match opcode {
            0x80 => match code.byte()? {
                2 => {}
                other => return Err(format!("its pickle is of protocol {other}, but only 2 is supported")),
            },
            b'(' => self.stack.push(Value::Mark),
            b'}' => self.push_dict(),
            b']' | b')' => self.push_sequence(Vec::new()),
            b't' => {
                let values = self.marked()?;
                self.push_sequence(values);
            }
            0x85..=0x87 => {
                let values = self.last(usize::from(opcode - 0x84))?;
                self.push_sequence(values);
            }
            b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
            b'G' => {
                code.take(8)?;
                self.stack.push(Value::Other);
            }
            b'K' => self.whole(&[code.byte()?]),
            b'M' => self.whole(code.take(2)?),
            b'J' => self.stack.push(Value::Whole(i64::from(code.u32()?.cast_signed()))),
            0x8a => {
                let length = usize::from(code.byte()?);
                let bytes = code.take(length)?;
                self.long(bytes)?;
            }
            b'X' => {
                let length = code.u32()? as usize;
                let text =
                    std::str::from_utf8(code.take(length)?).map_err(|_| "its pickle holds bytes that are no text")?;
                self.stack.push(Value::Text(text.into()));
            }
            b'c' => {
                let (module, name) = (code.line()?, code.line()?);
                self.stack.push(Value::Callable(import(module, name)?));
            }
            b'q' | b'r' | b'h' | b'j' => self.remember(opcode, code)?,
            b'u' | b's' | b'e' | b'a' => self.fill(opcode)?,
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            other => return Err(format!("its pickle has the instruction 0x{other:02x}, which is refused")),
        }
        Ok(())
    }

    fn whole(&mut self, bytes: &[u8]) {
        self.stack.push(Value::Whole(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | i64::from(*byte))));
    }

    /// Two's complement, little endian.
    fn long(&mut self, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > 8 {
            return Err("its pickle holds a number of more than 64 bits".to_owned());
        }
        let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
        let mut all = [fill; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Whole(i64::from_le_bytes(all)));
        Ok(())
    }

    fn remember(&mut self, opcode: u8, code: &mut Code<'_>) -> Result<(), String> {
        let key = if matches!(opcode, b'q' | b'h') { u32::from(code.byte()?) } else { code.u32()? };
        if matches!(opcode, b'q' | b'r') {
            let value = self.stack.last().ok_or("its pickle takes what is not there")?;
            self.memo.insert(key, value.clone());
        } else {
            let value = self.memo.get(&key).ok_or("its pickle takes what is not there")?;
            self.stack.push(value.clone());
        }
        Ok(())
    }

    /// Adds items to the container below them: of a dictionary (`u` many, `s` one) or a list (`e`, `a`).
    fn fill(&mut self, opcode: u8) -> Result<(), String> {
        let values = match opcode {
            b'u' | b'e' => self.marked()?,
            b's' => self.last(2)?,
            _ => self.last(1)?,
        };
        match (opcode, self.stack.last()) {
            (b'u' | b's', Some(Value::Dict(at))) if values.len() % 2 == 0 => {
                let pairs = values.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
                self.made.dicts[*at].extend(pairs);
            }
            (b'e' | b'a', Some(Value::Sequence(at))) => self.made.sequences[*at].extend(values),
            _ => return Err("its pickle fills what is no list or dictionary".to_owned()),
        }
        Ok(())
    }

    fn parts(&self, value: &Value) -> Result<&[Value], String> {
        match value {
            Value::Sequence(at) => Ok(&self.made.sequences[*at]),
            _ => Err("its pickle has something else where a list should be".to_owned()),
        }
    }

    /// ('storage', kind, key, device, count): torch's only use of a persistent id.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let storage = match self.parts(&id)? {
            [
                Value::Text(word),
                Value::Callable(Callable::StorageOf(kind)),
                Value::Text(key),
                _,
                Value::Whole(count),
            ] if &**word == "storage" => {
                let count = u64::try_from(*count).map_err(|_| "its pickle has a storage of negative length")?;
                Storage { kind: *kind, key: key.clone(), count }
            }
            _ => return Err("its pickle refers to something that is no storage of tensors".to_owned()),
        };
        self.made.storages.push(storage);
        self.stack.push(Value::Storage(self.made.storages.len() - 1));
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Callable(function) = function else {
            return Err("its pickle calls what is no function, which is refused".to_owned());
        };
        match (function, self.parts(&arguments)?) {
            (Callable::OrderedDict, []) => self.push_dict(),
            (Callable::RebuildParameter, [Value::Tensor(at), ..]) => {
                let tensor = Value::Tensor(*at);
                self.stack.push(tensor);
            }
            (Callable::RebuildTensor, [Value::Storage(at), Value::Whole(offset), shape, strides, ..]) => {
                let storage = self.made.storages[*at].clone();
                let tensor = stored(storage, *offset, self.wholes(shape)?, self.wholes(strides)?)?;
                self.made.tensors.push(tensor);
                self.stack.push(Value::Tensor(self.made.tensors.len() - 1));
            }
            _ => {
                return Err(format!(
                    "its pickle calls {function:?} with other arguments than torch.save does, which is refused"
                ));
            }
        }
        Ok(())
    }

    fn wholes(&self, value: &Value) -> Result<Vec<i64>, String> {
        let whole = |value: &Value| match value {
            Value::Whole(whole) => Ok(*whole),
            _ => Err("its pickle has something else where a size should be".to_owned()),
        };
        let parts = self.parts(value)?;
        if parts.len() > MAX_DIMENSIONS {
            return Err(format!("it has a tensor of {} dimensions", parts.len()));
        }
        parts.iter().map(whole).collect()
    }

    /// Attributes of a state dictionary (`_metadata`) are of no use here; nothing else has any.
    fn build(&mut self) -> Result<(), String> {
        let _attributes = self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_)) => Ok(()),
            _ => Err("its pickle sets attributes of something that is no dictionary, which is refused".to_owned()),
        }
    }
}

/// A tensor that lies within its storage and holds no element twice.
fn stored(storage: Storage, offset: i64, shape: Vec<i64>, strides: Vec<i64>) -> Result<Stored, String> {
    let place = || -> Option<(u64, u64)> {
        if shape.len() != strides.len() || shape.iter().chain(&strides).any(|size| *size < 0) {
            return None;
        }
        let elements = shape.iter().try_fold(1i64, |product, size| product.checked_mul(*size))?;
        let reach = |sum: i64, (size, stride): (&i64, &i64)| sum.checked_add((size - 1).checked_mul(*stride)?);
        let last = if elements == 0 { -1 } else { shape.iter().zip(&strides).try_fold(0, reach)? };
        let (offset, span) = (u64::try_from(offset).ok()?, u64::try_from(last.checked_add(1)?).ok()?);
        let within = offset.checked_add(span)? <= storage.count && u64::try_from(elements).ok()? <= storage.count;
        within.then_some((offset, span))
    };
    let (offset, span) = place().ok_or_else(|| {
        format!("it has a tensor of shape {shape:?} that does not lie within its storage {}", storage.key)
    })?;
    Ok(Stored { storage, offset, span, shape, strides })
}
