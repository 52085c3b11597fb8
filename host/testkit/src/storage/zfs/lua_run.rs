//! The Lua of channel programs: carried out.
//!
//! What a program can reach is given by [`Host`]; the few functions of the language itself are
//! here. Where Lua would stop with an error for a mistake of the program itself (arithmetic on
//! nil, a call of nothing) the test stops: such a program is not to be shipped.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use super::lua::{Expr, Function, Statement};

/// A key of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Number(i64),
    Text(Rc<str>),
}

/// A table.
pub(super) type Table = Rc<RefCell<BTreeMap<Key, Value>>>;

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Number(i64),
    Text(Rc<str>),
    Table(Table),
    /// A function of the program, with what was in sight where it was written.
    Closure(Rc<Function>, Rc<Scope>),
    /// A function of the host, by name.
    Native(String),
    /// What `zfs.list` gives: one result for each call.
    Each(Rc<RefCell<VecDeque<Vec<Value>>>>),
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Value::Text(text.into())
    }

    /// A table with these values from 1 on.
    pub(super) fn list(values: impl IntoIterator<Item = Value>) -> Self {
        let numbered = values.into_iter().zip(1..).map(|(v, i)| (Key::Number(i), v));
        Value::Table(Rc::new(RefCell::new(numbered.collect())))
    }

    fn truth(&self) -> bool {
        !matches!(self, Value::Nil | Value::Bool(false))
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::Text(_) => "string",
            Value::Table(_) => "table",
            Value::Closure(..) | Value::Native(_) | Value::Each(_) => "function",
        }
    }

    fn printed(&self) -> String {
        match self {
            Value::Nil => "nil".to_owned(),
            Value::Bool(b) => b.to_string(),
            Value::Number(n) => n.to_string(),
            Value::Text(t) => t.to_string(),
            other => panic!("lua: a {} has no text the model knows", other.kind()),
        }
    }

    fn equals(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Nil, Value::Nil) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Number(a), Value::Number(b)) => a == b,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::Table(a), Value::Table(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// Names in sight.
#[derive(Debug, Default)]
pub(super) struct Scope {
    names: RefCell<HashMap<String, Value>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    fn within(outer: &Rc<Scope>) -> Rc<Scope> {
        Rc::new(Scope { names: RefCell::default(), outer: Some(outer.clone()) })
    }

    fn set_new(&self, name: &str, value: Value) {
        self.names.borrow_mut().insert(name.to_owned(), value);
    }

    fn get(&self, name: &str) -> Option<Value> {
        let own = self.names.borrow().get(name).cloned();
        own.or_else(|| self.outer.as_ref()?.get(name))
    }

    /// Sets it where it is; at the outermost where it is nowhere.
    fn set(&self, name: &str, value: Value) {
        match &self.outer {
            Some(outer) if !self.names.borrow().contains_key(name) => outer.set(name, value),
            _ => self.set_new(name, value),
        }
    }
}

/// An error that ends the program: what is said, and the function of the host that raised it.
#[derive(Debug)]
pub(super) struct Raised {
    pub message: Option<String>,
    pub within: String,
    pub line: u32,
}

/// What a program can reach outside of itself.
pub(super) trait Host {
    /// Calls a function by its name (`zfs.sync.destroy`); the error's text gets a place in front.
    fn call(&mut self, name: &str, arguments: &[Value]) -> Result<Vec<Value>, String>;
    /// The value of a name the program did not set.
    fn global(&self, name: &str) -> Option<Value>;
}

enum Flow {
    On,
    Break,
    Return(Vec<Value>),
}

type Run<T> = Result<T, Raised>;

/// A program being run.
pub(super) struct Machine<'a> {
    host: &'a mut dyn Host,
    arguments: Value,
    /// How many functions of the program are being run: an error's trace is known at 0 only.
    depth: u32,
}

/// Runs a program with this as its `...`; gives what it returns.
pub(super) fn run(body: &[Statement], arguments: Value, host: &mut dyn Host) -> Run<Vec<Value>> {
    let mut machine = Machine { host, arguments, depth: 0 };
    match machine.block(body, &Rc::new(Scope::default()))? {
        Flow::Return(values) => Ok(values),
        Flow::On => Ok(Vec::new()),
        Flow::Break => panic!("lua: `break` outside of a loop"),
    }
}

impl Machine<'_> {
    fn block(&mut self, body: &[Statement], scope: &Rc<Scope>) -> Run<Flow> {
        for statement in body {
            match self.statement(statement, scope)? {
                Flow::On => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::On)
    }

    fn statement(&mut self, statement: &Statement, scope: &Rc<Scope>) -> Run<Flow> {
        match statement {
            Statement::Local(names, values) => {
                let mut values = self.values(values, scope)?.into_iter();
                for name in names {
                    scope.set_new(name, values.next().unwrap_or(Value::Nil));
                }
            }
            Statement::LocalFunction(name, function) => {
                scope.set_new(name, Value::Closure(function.clone(), scope.clone()));
            }
            Statement::Assign(targets, values) => {
                let mut values = self.values(values, scope)?.into_iter();
                for target in targets {
                    self.assign(target, values.next().unwrap_or(Value::Nil), scope)?;
                }
            }
            Statement::Call(call) => {
                self.many(call, scope)?;
            }
            Statement::If(arms, otherwise) => {
                for (test, body) in arms {
                    if self.one(test, scope)?.truth() {
                        return self.block(body, &Scope::within(scope));
                    }
                }
                return self.block(otherwise, &Scope::within(scope));
            }
            Statement::While(test, body) => {
                while self.one(test, scope)?.truth() {
                    match self.block(body, &Scope::within(scope))? {
                        Flow::On => {}
                        Flow::Break => break,
                        back => return Ok(back),
                    }
                }
            }
            Statement::Count(name, from, to, step, body) => {
                let step = match step {
                    Some(step) => self.number(step, scope)?,
                    None => 1,
                };
                assert!(step != 0, "lua: a loop with step 0");
                let (mut at, to) = (self.number(from, scope)?, self.number(to, scope)?);
                while if step > 0 { at <= to } else { at >= to } {
                    let inner = Scope::within(scope);
                    inner.set_new(name, Value::Number(at));
                    match self.block(body, &inner)? {
                        Flow::On => {}
                        Flow::Break => break,
                        back => return Ok(back),
                    }
                    at += step;
                }
            }
            Statement::Each(names, from, body, line) => {
                let next = self.one(from, scope)?;
                loop {
                    let mut values = self.call(&next, Vec::new(), *line)?.into_iter();
                    let inner = Scope::within(scope);
                    for (at, name) in names.iter().enumerate() {
                        let value = values.next().unwrap_or(Value::Nil);
                        if at == 0 && matches!(value, Value::Nil) {
                            return Ok(Flow::On);
                        }
                        inner.set_new(name, value);
                    }
                    match self.block(body, &inner)? {
                        Flow::On => {}
                        Flow::Break => return Ok(Flow::On),
                        back => return Ok(back),
                    }
                }
            }
            Statement::Block(body) => return self.block(body, &Scope::within(scope)),
            Statement::Return(values) => return Ok(Flow::Return(self.values(values, scope)?)),
            Statement::Break => return Ok(Flow::Break),
        }
        Ok(Flow::On)
    }

    fn assign(&mut self, target: &Expr, value: Value, scope: &Rc<Scope>) -> Run<()> {
        match target {
            Expr::Name(name) => scope.set(name, value),
            Expr::Index(table, key) => {
                let (table, key) = (self.one(table, scope)?, self.one(key, scope)?);
                let Value::Table(table) = table else {
                    panic!("lua: a {} is assigned to by index", table.kind())
                };
                match value {
                    Value::Nil => table.borrow_mut().remove(&as_key(&key)),
                    value => table.borrow_mut().insert(as_key(&key), value),
                };
            }
            other => panic!("lua: cannot assign to {other:?}"),
        }
        Ok(())
    }

    /// The values of a list: the last may give many.
    fn values(&mut self, list: &[Expr], scope: &Rc<Scope>) -> Run<Vec<Value>> {
        let mut all = Vec::new();
        for (at, expr) in list.iter().enumerate() {
            if at + 1 == list.len() {
                all.extend(self.many(expr, scope)?);
            } else {
                all.push(self.one(expr, scope)?);
            }
        }
        Ok(all)
    }

    fn many(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Run<Vec<Value>> {
        match expr {
            Expr::Call(function, arguments, line) => {
                let function = self.one(function, scope)?;
                let arguments = self.values(arguments, scope)?;
                self.call(&function, arguments, *line)
            }
            other => Ok(vec![self.one(other, scope)?]),
        }
    }

    fn number(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Run<i64> {
        match self.one(expr, scope)? {
            Value::Number(number) => Ok(number),
            other => panic!("lua: a {} where a number is needed", other.kind()),
        }
    }

    fn one(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Run<Value> {
        Ok(match expr {
            Expr::Nil => Value::Nil,
            Expr::True => Value::Bool(true),
            Expr::False => Value::Bool(false),
            Expr::Number(number) => Value::Number(*number),
            Expr::Text(text) => Value::Text(text.clone()),
            Expr::Arguments => {
                assert!(self.depth == 0, "lua: `...` within a function is not known");
                self.arguments.clone()
            }
            Expr::Name(name) => match scope.get(name) {
                Some(value) => value,
                None => self.host.global(name).unwrap_or(Value::Nil),
            },
            Expr::Index(table, key) => {
                let (table, key) = (self.one(table, scope)?, self.one(key, scope)?);
                match table {
                    Value::Table(table) => {
                        table.borrow().get(&as_key(&key)).cloned().unwrap_or(Value::Nil)
                    }
                    Value::Native(name) => Value::Native(format!("{name}.{}", key.printed())),
                    other => panic!("lua: a {} is indexed with {}", other.kind(), key.printed()),
                }
            }
            Expr::Call(..) => self.many(expr, scope)?.into_iter().next().unwrap_or(Value::Nil),
            Expr::One(inner) => self.one(inner, scope)?,
            Expr::Function(function) => Value::Closure(function.clone(), scope.clone()),
            Expr::Unary(sign, value, line) => unary(sign, &self.one(value, scope)?, *line),
            Expr::Binary(sign, left, right, line) => {
                let left = self.one(left, scope)?;
                match *sign {
                    "and" if !left.truth() => left,
                    "or" if left.truth() => left,
                    "and" | "or" => self.one(right, scope)?,
                    sign => binary(sign, &left, &self.one(right, scope)?, *line),
                }
            }
            Expr::Table(items) => {
                let (mut table, mut next) = (BTreeMap::new(), 1);
                for (at, (key, value)) in items.iter().enumerate() {
                    let last = at + 1 == items.len();
                    let values = match (key, last) {
                        (None, true) => self.many(value, scope)?,
                        _ => vec![self.one(value, scope)?],
                    };
                    for value in values {
                        let key = match key {
                            Some(key) => as_key(&self.one(key, scope)?),
                            None => {
                                next += 1;
                                Key::Number(next - 1)
                            }
                        };
                        if !matches!(value, Value::Nil) {
                            table.insert(key, value);
                        }
                    }
                }
                Value::Table(Rc::new(RefCell::new(table)))
            }
        })
    }

    fn call(&mut self, function: &Value, arguments: Vec<Value>, line: u32) -> Run<Vec<Value>> {
        match function {
            Value::Closure(function, scope) => {
                let inner = Scope::within(scope);
                let mut arguments = arguments.into_iter();
                for parameter in &function.parameters {
                    inner.set_new(parameter, arguments.next().unwrap_or(Value::Nil));
                }
                self.depth += 1;
                let flow = self.block(&function.body, &inner)?;
                self.depth -= 1;
                match flow {
                    Flow::Return(values) => Ok(values),
                    _ => Ok(Vec::new()),
                }
            }
            Value::Each(list) => Ok(list.borrow_mut().pop_front().unwrap_or_default()),
            Value::Native(name) => self.native(name, &arguments, line),
            other => panic!("lua: a {} is called (line {line})", other.kind()),
        }
    }

    fn native(&mut self, name: &str, arguments: &[Value], line: u32) -> Run<Vec<Value>> {
        let first = arguments.first().unwrap_or(&Value::Nil);
        let raise = |depth: u32, message: Option<String>| {
            assert!(depth == 0, "lua: the trace of an error within a function is not known");
            let within = name.rsplit('.').next().unwrap_or(name).to_owned();
            Err(Raised { message, within, line })
        };
        let place = format!("[string \"channel program\"]:{line}: ");
        let value = match (name, arguments) {
            ("tostring", [value]) => Value::text(&value.printed()),
            ("type", [value]) => Value::text(value.kind()),
            ("tonumber", [Value::Number(number)]) => Value::Number(*number),
            ("tonumber", [Value::Text(text)]) => read_number(text),
            ("string.byte", [Value::Text(text), Value::Number(at)]) => {
                let at = usize::try_from(*at).ok().and_then(|i| i.checked_sub(1));
                let byte = at.and_then(|i| text.as_bytes().get(i));
                byte.map_or(Value::Nil, |b| Value::Number(i64::from(*b)))
            }
            ("string.sub", [Value::Text(text), Value::Number(from @ 1..), rest @ ..]) => {
                let to = match rest {
                    [] | [Value::Number(-1)] => text.len(),
                    [Value::Number(to @ 0..)] => usize::try_from(*to).unwrap_or(0).min(text.len()),
                    _ => panic!("lua: string.sub with {rest:?} is not known"),
                };
                let from = usize::try_from(*from - 1).unwrap_or(0).min(text.len());
                Value::text(text.get(from..to).unwrap_or(""))
            }
            ("string.len", [Value::Text(text)]) => Value::Number(text.len() as i64),
            ("string.format", [Value::Text(form), Value::Number(n)]) if &**form == "%d" => {
                Value::text(&n.to_string())
            }
            ("string.format", [Value::Text(form), Value::Number(n)]) if &**form == "%u" => {
                Value::text(&n.cast_unsigned().to_string())
            }
            ("error", [message, rest @ ..]) => {
                let message = match (message, rest) {
                    (Value::Text(_) | Value::Number(_), [Value::Number(0)]) => {
                        Some(message.printed())
                    }
                    (Value::Text(_) | Value::Number(_), []) => {
                        Some(format!("{place}{}", message.printed()))
                    }
                    (_, []) => None,
                    _ => panic!("lua: error with {rest:?} is not known"),
                };
                return raise(self.depth, message);
            }
            ("assert", [_, rest @ ..]) => {
                if first.truth() {
                    return Ok(arguments.to_vec());
                }
                let text = rest.first().map_or("assertion failed!".to_owned(), Value::printed);
                return raise(self.depth, Some(format!("{place}{text}")));
            }
            _ => {
                let depth = self.depth;
                return match self.host.call(name, arguments) {
                    Ok(values) => Ok(values),
                    Err(text) => raise(depth, Some(format!("{place}{text}"))),
                };
            }
        };
        Ok(vec![value])
    }
}

/// Reads a number as the kernel's Lua does: it wraps around, and a leading 0 means base 8.
fn read_number(text: &str) -> Value {
    let digits = text.trim();
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits),
    };
    let (base, digits) =
        if digits.len() > 1 && digits.starts_with('0') { (8, &digits[1..]) } else { (10, digits) };
    if digits.is_empty() {
        return Value::Nil;
    }
    let mut value = 0_i64;
    for c in digits.chars() {
        let Some(digit) = c.to_digit(base) else { return Value::Nil };
        value = value.wrapping_mul(i64::from(base)).wrapping_add(i64::from(digit));
    }
    Value::Number(if negative { value.wrapping_neg() } else { value })
}

fn as_key(value: &Value) -> Key {
    match value {
        Value::Number(number) => Key::Number(*number),
        Value::Text(text) => Key::Text(text.clone()),
        other => panic!("lua: a {} as a key is not known", other.kind()),
    }
}

fn unary(sign: &str, value: &Value, line: u32) -> Value {
    match (sign, value) {
        ("not", value) => Value::Bool(!value.truth()),
        ("-", Value::Number(number)) => Value::Number(number.wrapping_neg()),
        ("#", Value::Text(text)) => Value::Number(text.len() as i64),
        ("#", Value::Table(table)) => {
            let table = table.borrow();
            let filled = (1..).take_while(|i| table.contains_key(&Key::Number(*i))).count();
            Value::Number(filled as i64)
        }
        _ => panic!("lua: `{sign}` of a {} (line {line})", value.kind()),
    }
}

fn binary(sign: &str, left: &Value, right: &Value, line: u32) -> Value {
    use Value::{Bool, Number, Text};
    match (sign, left, right) {
        ("==", l, r) => Bool(l.equals(r)),
        ("~=", l, r) => Bool(!l.equals(r)),
        ("..", Text(_) | Number(_), Text(_) | Number(_)) => {
            Value::text(&format!("{}{}", left.printed(), right.printed()))
        }
        ("<", Number(l), Number(r)) => Bool(l < r),
        (">", Number(l), Number(r)) => Bool(l > r),
        ("<=", Number(l), Number(r)) => Bool(l <= r),
        (">=", Number(l), Number(r)) => Bool(l >= r),
        ("<", Text(l), Text(r)) => Bool(l < r),
        (">", Text(l), Text(r)) => Bool(l > r),
        ("+", Number(l), Number(r)) => Number(l.wrapping_add(*r)),
        ("-", Number(l), Number(r)) => Number(l.wrapping_sub(*r)),
        ("*", Number(l), Number(r)) => Number(l.wrapping_mul(*r)),
        // As in C: towards zero.
        ("/", Number(l), Number(r)) if *r != 0 => Number(l.wrapping_div(*r)),
        ("%", Number(l), Number(r)) if *r != 0 => Number(l.wrapping_rem(*r)),
        _ => panic!("lua: {} {sign} {} (line {line})", left.kind(), right.kind()),
    }
}
