"""Valid, nearly valid and invalid contents of JSON, headers, addresses and forms."""

from __future__ import annotations

#: Values that JSON can hold, nearly hold, or must not hold, in their written form.
VALUES = [
    *(b"null", b"true", b"0", b"-0", b"-1", b"1.5", b"1e400", b"-1e-400", b"NaN", b"-Infinity"),
    *(b"9" * 5000, b"1" + b"0" * 400, b"18446744073709551616", b"0x10", b"01", b"1.", b".5"),
    *(b'""', b'"\\u0000"', b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xff\xfe"', b'"\xed\xa0\x80"'),
    *(b'"\\x"', b"'single'", b'"open', b'"' + b"long " * 4000 + b'"', b'"\xe2\x80\xae\xf0\x9f"'),
    *(b"[]", b"{}", b"[[]]", b"[null]", b'["a",1]', b"[1,2,3]", b"[[1,2],[3]]", b"[-1]", b"[1e9]"),
    *(b"[" * 300 + b"]" * 300, b"[" * 2000, b'{"a":' * 900 + b"1" + b"}" * 900, b"[[1],[NaN]]"),
    *(b'[""]', b'["\\ud800","fine"]', b"[" + b"0," * 5000 + b"0]", b"[" + b'"",' * 4200 + b'""]'),
    *(b'"float"', b'"base64"', b'"../../etc/passwd"', b'"%s%n"', b'"' + b"\\u00e9" * 300 + b'"'),
]
WHOLES = [
    *(b"", b" ", b"\xef\xbb\xbf{}", b"\x00", b"{", b"}", b"[]", b"{}", b'"text"', b"7", b"null"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'["\\ud800",' + b"[" * 100_000, b"\xff" * 1000),
    *(b"--\r\n", b"input=a", b"<input>a</input>", b"\x80\x04N.", b"{}{}", b"\x1f\x8b", b"{,}"),
]
TYPES = [
    *(
        "",
        "json",
        "text/plain",
        "application/json;charset=utf-16",
        "application/json; charset=\xff",
    ),
    *("application/json;;;=;", "application/json; charset=utf-8; charset=utf-7", "*/*"),
    *("multipart/form-data", "multipart/form-data; boundary=", "application/x-www-form-urlencoded"),
    *(f"multipart/form-data; boundary={'b' * 3000}", "multipart/mixed; boundary=x", "a" * 4000),
    *(
        "multipart/form-data; boundary=\xe9",
        "APPLICATION/JSON",
        "application/json; charset=latin-1",
    ),
]
ENCODINGS = ["", "br", "deflate", "gzip, gzip", "gzip", "x-gzip", "GZIP", "identity", "\xff", "*"]
#: Headers that the server reads, with values that no client should send.
HEADERS = {
    "Idempotency-Key": ["", "k" * 256, "k" * 8000, "\xff\xfe", "../", "%00", "a b", "\t"],
    "Prefer": ["wait", "wait=", "wait=NaN", "wait=-1", "wait=1e9", "wait=0x3", "wait=9" * 99, ";="],
    "Accept": ["", "*", "a/b;q=nan", "application/x-npy", "text/*;q=9", ",", "\xff", "x" * 5000],
    "Accept-Encoding": ["gzip;q=inf", "\xff", "zstd, br", ","],
    "Authorization": ["Bearer", "Bearer \xff", "Basic !!", "Digest a=b,", "Bearer " + "k" * 5000],
    "X-API-Key": ["", "\xff", "k" * 5000],
    "X-Request-Id": ["", "\xff", "i" * 5000, "a b;c\t"],
    "X-Stainless-Read-Timeout": ["nan", "inf", "-1", "0", "1e999", "x", "5\xb2"],
    "Traceparent": [
        "00-0-0-00",
        "ff-" + "f" * 60,
        "\xff",
        "00-" + "g" * 32 + "-" + "0" * 16 + "-01",
    ],
    "Expect": ["100-continue", "a miracle"],
    "Range": ["bytes=0-0,1-1,2-2", "bytes=9-1"],
    "If-None-Match": ['"', "*", "\xff"],
    "Cookie": ["=", "a=\xff;;", "c" * 5000],
    "X-Forwarded-For": ["127.0.0.1, \xff"],
    "X-HTTP-Method-Override": ["DELETE"],
    "Host": ["", "attacker.example", "localhost:x", "[::1", "[::1]:8000", "a@localhost", "\xff"],
    "Origin": ["null", "", "http://attacker.example", "http://localhost", "http://[", "\xff"],
    "Sec-Fetch-Site": ["cross-site", "same-site", "same-origin", "none", "", "\xff"],
    "X-Forwarded-Host": ["localhost", "attacker.example, \xff"],
    "X-Forwarded-Prefix": ["/\xff", "//attacker.example"],
    "Connection": ["keep-alive", "upgrade, http2-settings", "\xff"],
    "Upgrade": ["h2c", "websocket"],
    "Last-Event-ID": ["NaN", "\xff"],
    "Content-Disposition": ["x"],
    "Content-Range": ["bytes 0-1/2"],
}
QUERIES = [
    *(
        "?wait=NaN",
        "?wait=-1",
        "?wait=1e9",
        "?wait=%00",
        "?wait=%C2%B2",
        "?wait=0&wait=1",
        "?wait=",
    ),
    *(
        "?limit=%C2%B2",
        "?limit=-1",
        "?limit=1e3",
        "?limit=" + "9" * 900,
        "?after=%FF",
        "?after=%00",
    ),
    *("?status=%F0", "?%FF=%FE", "?=&&=;", "?" + "a=b&" * 900, "?encoding_format=x", "?order=%00"),
    *(
        "?purpose=%00",
        "?after=" + "a" * 3000,
        "#",
        "%00",
        "%FF",
        "/",
        "//",
        "/..%2f",
        "/%2e%2e",
        "?",
    ),
]
#: Targets that are no path, before the path.
TARGETS = [
    "http://localhost",
    "http://attacker.example",
    "http://[",
    "//localhost",
    "ftp:",
    "*",
    "",
]
DISPOSITIONS = [
    *("", "name", 'name="', 'name="file', 'name=""; filename=""', "name*=utf-8''%ff; filename=a"),
    *('name="file"; filename="' + "n" * 6000 + '"', 'name="file"; filename="a\x00b"'),
    *('name="purpose"; filename="p"', 'name="expires_after[seconds]"', "filename*=utf-16''%00x"),
    *(
        'name="file"; filename="\xe9"\r\nContent-Transfer-Encoding: base64',
        "name=\xff\xfe",
        ";" * 900,
    ),
    *('name="file"; filename=a\r\nContent-Type: multipart/mixed; boundary=b', "a: b\r\n" * 300),
]
