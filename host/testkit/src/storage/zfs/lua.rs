//! The Lua of channel programs: text to tree.
//!
//! As much of Lua 5.2 as programs for ZFS use; numbers are signed 64-bit integers, as they are
//! there. What is left out (methods, varargs of own functions, `goto`, `repeat`, long brackets)
//! ends the test with words, like everything the model does not know.

use std::rc::Rc;

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    Nil,
    True,
    False,
    Number(i64),
    Text(Rc<str>),
    /// `...` of the program itself.
    Arguments,
    Name(String),
    Index(Box<Expr>, Box<Expr>),
    Call(Box<Expr>, Vec<Expr>, u32),
    Function(Rc<Function>),
    Binary(&'static str, Box<Expr>, Box<Expr>, u32),
    Unary(&'static str, Box<Expr>, u32),
    /// Items with a key, or none for the next number.
    Table(Vec<(Option<Expr>, Expr)>),
    /// In parentheses: one value, whatever is inside.
    One(Box<Expr>),
}

/// A function as written.
#[derive(Debug)]
pub(super) struct Function {
    pub parameters: Vec<String>,
    pub body: Vec<Statement>,
}

/// A statement.
#[derive(Debug)]
pub(super) enum Statement {
    Local(Vec<String>, Vec<Expr>),
    LocalFunction(String, Rc<Function>),
    Assign(Vec<Expr>, Vec<Expr>),
    Call(Expr),
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    While(Expr, Vec<Statement>),
    Count(String, Expr, Expr, Option<Expr>, Vec<Statement>),
    Each(Vec<String>, Expr, Vec<Statement>, u32),
    Block(Vec<Statement>),
    Return(Vec<Expr>),
    Break,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Number(i64),
    Text(String),
    Sign(&'static str),
    End,
}

const SIGNS: [&str; 27] = [
    "...", "..", "==", "~=", "<=", ">=", "+", "-", "*", "/", "%", "^", "#", "<", ">", "=", "(",
    ")", "{", "}", "[", "]", ";", ":", ",", ".", "::",
];
const RESERVED: [&str; 22] = [
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in",
    "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
];

/// Operators of two sides, weakest first; `..` and `^` lean to the right.
const LEVELS: [&[&str]; 6] = [
    &["or"],
    &["and"],
    &["<", ">", "<=", ">=", "~=", "=="],
    &[".."],
    &["+", "-"],
    &["*", "/", "%"],
];

fn tokens(text: &str) -> Vec<(Token, u32)> {
    let (mut all, mut rest, mut line) = (Vec::new(), text, 1);
    loop {
        let blank = rest.len() - rest.trim_start().len();
        line += rest[..blank].matches('\n').count() as u32;
        rest = &rest[blank..];
        if let Some(comment) = rest.strip_prefix("--") {
            assert!(!comment.starts_with("[["), "lua: long comments are not known (line {line})");
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
            continue;
        }
        let Some(first) = rest.chars().next() else {
            all.push((Token::End, line));
            return all;
        };
        let span = |good: &dyn Fn(char) -> bool| rest.find(|c| !good(c)).unwrap_or(rest.len());
        let (token, length) = if first.is_ascii_alphabetic() || first == '_' {
            let end = span(&|c| c.is_ascii_alphanumeric() || c == '_');
            (Token::Word(rest[..end].to_owned()), end)
        } else if first.is_ascii_digit() {
            let end = span(&|c| c.is_ascii_alphanumeric() || c == '.');
            let number = rest[..end].parse().unwrap_or_else(|_| {
                panic!("lua: this number is not known: {} (line {line})", &rest[..end])
            });
            (Token::Number(number), end)
        } else if first == '"' || first == '\'' {
            text_token(rest, first, line)
        } else {
            let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) else {
                panic!("lua: `{first}` is not known (line {line})")
            };
            (Token::Sign(sign), sign.len())
        };
        all.push((token, line));
        rest = &rest[length..];
    }
}

fn text_token(rest: &str, quote: char, line: u32) -> (Token, usize) {
    let (mut value, mut chars) = (String::new(), rest.char_indices().skip(1));
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return (Token::Text(value), at + 1),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('\\' | '"' | '\''))) => value.push(c),
                other => panic!("lua: this escape is not known: {other:?} (line {line})"),
            },
            '\n' => break,
            c => value.push(c),
        }
    }
    panic!("lua: a text is not closed (line {line})")
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
}

/// The program's statements, or what Lua says of a mistake.
pub(super) fn parse(text: &str) -> Result<Vec<Statement>, String> {
    let mut parser = Parser { tokens: tokens(text), at: 0 };
    let body = parser.block()?;
    match parser.peek() {
        Token::End => Ok(body),
        _ => Err(parser.mistake()),
    }
}

type Parsed<T> = Result<T, String>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn mistake(&self) -> String {
        let near = match self.peek() {
            Token::Word(word) => format!("'{word}'"),
            Token::Number(number) => format!("'{number}'"),
            Token::Text(text) => format!("'\"{text}\"'"),
            Token::Sign(sign) => format!("'{sign}'"),
            Token::End => "<eof>".to_owned(),
        };
        format!("[string \"channel program\"]:{}: syntax error near {near}", self.line())
    }

    /// Whether the next is this word or sign, which is then passed.
    fn takes(&mut self, what: &str) -> bool {
        let is = match self.peek() {
            Token::Word(word) => word == what,
            Token::Sign(sign) => *sign == what,
            _ => false,
        };
        if is {
            self.next();
        }
        is
    }

    fn needs(&mut self, what: &str) -> Parsed<()> {
        if self.takes(what) { Ok(()) } else { Err(self.mistake()) }
    }

    fn name(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Word(word) if !RESERVED.contains(&word.as_str()) => {
                let word = word.clone();
                self.next();
                Ok(word)
            }
            _ => Err(self.mistake()),
        }
    }

    fn names(&mut self) -> Parsed<Vec<String>> {
        let mut names = vec![self.name()?];
        while self.takes(",") {
            names.push(self.name()?);
        }
        Ok(names)
    }

    /// Statements up to a word that ends them, which stays.
    fn block(&mut self) -> Parsed<Vec<Statement>> {
        let mut statements = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(statements),
                Token::Word(w) if ["end", "else", "elseif", "until"].contains(&w.as_str()) => {
                    return Ok(statements);
                }
                Token::Sign(";") => {
                    self.next();
                }
                _ => statements.push(self.statement()?),
            }
        }
    }

    fn body(&mut self) -> Parsed<Vec<Statement>> {
        let body = self.block()?;
        self.needs("end")?;
        Ok(body)
    }

    fn statement(&mut self) -> Parsed<Statement> {
        let Token::Word(word) = self.peek().clone() else { return self.assignment() };
        match word.as_str() {
            "local" => {
                self.next();
                if self.takes("function") {
                    let name = self.name()?;
                    return Ok(Statement::LocalFunction(name, self.function()?));
                }
                let names = self.names()?;
                let values = if self.takes("=") { self.expressions()? } else { Vec::new() };
                Ok(Statement::Local(names, values))
            }
            "if" => {
                let (mut arms, mut otherwise) = (Vec::new(), Vec::new());
                loop {
                    self.next();
                    let test = self.expression(0)?;
                    self.needs("then")?;
                    arms.push((test, self.block()?));
                    if !matches!(self.peek(), Token::Word(w) if w == "elseif") {
                        break;
                    }
                }
                if self.takes("else") {
                    otherwise = self.block()?;
                }
                self.needs("end")?;
                Ok(Statement::If(arms, otherwise))
            }
            "while" => {
                self.next();
                let test = self.expression(0)?;
                self.needs("do")?;
                Ok(Statement::While(test, self.body()?))
            }
            "for" => self.for_loop(),
            "do" => {
                self.next();
                Ok(Statement::Block(self.body()?))
            }
            "return" => {
                self.next();
                let ends = match self.peek() {
                    Token::End | Token::Sign(";") => true,
                    Token::Word(w) => ["end", "else", "elseif"].contains(&w.as_str()),
                    _ => false,
                };
                let values = if ends { Vec::new() } else { self.expressions()? };
                self.takes(";");
                Ok(Statement::Return(values))
            }
            "break" => {
                self.next();
                Ok(Statement::Break)
            }
            "function" | "goto" | "repeat" => {
                panic!("lua: `{word}` is not known (line {})", self.line())
            }
            _ => self.assignment(),
        }
    }

    fn for_loop(&mut self) -> Parsed<Statement> {
        let line = self.line();
        self.next();
        let mut names = self.names()?;
        if self.takes("in") {
            let from = self.expression(0)?;
            self.needs("do")?;
            return Ok(Statement::Each(names, from, self.body()?, line));
        }
        self.needs("=")?;
        let from = self.expression(0)?;
        self.needs(",")?;
        let to = self.expression(0)?;
        let step = if self.takes(",") { Some(self.expression(0)?) } else { None };
        self.needs("do")?;
        let body = self.body()?;
        match (names.pop(), names.is_empty()) {
            (Some(name), true) => Ok(Statement::Count(name, from, to, step, body)),
            _ => Err(self.mistake()),
        }
    }

    fn assignment(&mut self) -> Parsed<Statement> {
        let mut targets = vec![self.suffixed()?];
        if let Expr::Call(..) = targets[0] {
            return Ok(Statement::Call(targets.remove(0)));
        }
        while self.takes(",") {
            targets.push(self.suffixed()?);
        }
        self.needs("=")?;
        Ok(Statement::Assign(targets, self.expressions()?))
    }

    fn expressions(&mut self) -> Parsed<Vec<Expr>> {
        let mut all = vec![self.expression(0)?];
        while self.takes(",") {
            all.push(self.expression(0)?);
        }
        Ok(all)
    }

    fn function(&mut self) -> Parsed<Rc<Function>> {
        self.needs("(")?;
        let parameters = if self.takes(")") {
            Vec::new()
        } else {
            let names = self.names()?;
            self.needs(")")?;
            names
        };
        Ok(Rc::new(Function { parameters, body: self.body()? }))
    }

    fn expression(&mut self, level: usize) -> Parsed<Expr> {
        let Some(signs) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.expression(level + 1)?;
        loop {
            let line = self.line();
            let Some(sign) = signs.iter().find(|s| self.takes(s)) else { return Ok(left) };
            let right = self.expression(if *sign == ".." { level } else { level + 1 })?;
            left = Expr::Binary(sign, Box::new(left), Box::new(right), line);
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let line = self.line();
        for sign in ["not", "#", "-"] {
            if self.takes(sign) {
                return Ok(Expr::Unary(sign, Box::new(self.unary()?), line));
            }
        }
        let base = match self.peek().clone() {
            Token::Number(number) => Some(Expr::Number(number)),
            Token::Text(text) => Some(Expr::Text(text.into())),
            Token::Sign("...") => Some(Expr::Arguments),
            Token::Sign("{") => return self.table(),
            Token::Word(word) => match word.as_str() {
                "nil" => Some(Expr::Nil),
                "true" => Some(Expr::True),
                "false" => Some(Expr::False),
                "function" => {
                    self.next();
                    return Ok(Expr::Function(self.function()?));
                }
                _ => None,
            },
            _ => None,
        };
        let base = match base {
            Some(simple) => {
                self.next();
                simple
            }
            None => self.suffixed()?,
        };
        assert!(!matches!(self.peek(), Token::Sign("^")), "lua: `^` is not known (line {line})");
        Ok(base)
    }

    fn suffixed(&mut self) -> Parsed<Expr> {
        let mut base = if self.takes("(") {
            let inner = self.expression(0)?;
            self.needs(")")?;
            Expr::One(Box::new(inner))
        } else {
            Expr::Name(self.name()?)
        };
        loop {
            let line = self.line();
            match self.peek().clone() {
                Token::Sign(".") => {
                    self.next();
                    let name = self.name()?;
                    base = Expr::Index(Box::new(base), Box::new(Expr::Text(name.into())));
                }
                Token::Sign("[") => {
                    self.next();
                    let key = self.expression(0)?;
                    self.needs("]")?;
                    base = Expr::Index(Box::new(base), Box::new(key));
                }
                Token::Sign("(") => {
                    self.next();
                    let arguments = if self.takes(")") {
                        Vec::new()
                    } else {
                        let all = self.expressions()?;
                        self.needs(")")?;
                        all
                    };
                    base = Expr::Call(Box::new(base), arguments, line);
                }
                Token::Sign("{") => {
                    let table = self.table()?;
                    base = Expr::Call(Box::new(base), vec![table], line);
                }
                Token::Text(text) => {
                    self.next();
                    base = Expr::Call(Box::new(base), vec![Expr::Text(text.into())], line);
                }
                Token::Sign(":") => panic!("lua: methods are not known (line {line})"),
                _ => return Ok(base),
            }
        }
    }

    fn table(&mut self) -> Parsed<Expr> {
        self.needs("{")?;
        let mut items = Vec::new();
        while !self.takes("}") {
            let is_named = matches!(self.peek(), Token::Word(_))
                && matches!(self.tokens.get(self.at + 1), Some((Token::Sign("="), _)));
            if is_named {
                let key = Expr::Text(self.name()?.into());
                self.needs("=")?;
                items.push((Some(key), self.expression(0)?));
            } else if self.takes("[") {
                let key = self.expression(0)?;
                self.needs("]")?;
                self.needs("=")?;
                items.push((Some(key), self.expression(0)?));
            } else {
                items.push((None, self.expression(0)?));
            }
            if !self.takes(",") && !self.takes(";") {
                self.needs("}")?;
                break;
            }
        }
        Ok(Expr::Table(items))
    }
}
