-- 0001 bars and names
CREATE TABLE symbols (
        id INTEGER PRIMARY KEY,
        symbol TEXT NOT NULL UNIQUE,
        onboard_ms INTEGER NOT NULL,
        delivery_ms INTEGER NOT NULL,
        three_day_phase_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        folded_until INTEGER NOT NULL DEFAULT 0
    ) STRICT;
CREATE TABLE intervals (
        id INTEGER PRIMARY KEY,
        interval TEXT NOT NULL UNIQUE
    ) STRICT;
INSERT INTO intervals (id, interval) VALUES (0, '1m'), (1, '3m'), (2, '5m'), (3, '15m'), (4, '30m'), (5, '1h'), (6, '2h'), (7, '4h'), (8, '6h'), (9, '8h'), (10, '12h'), (11, '1d'), (12, '3d'), (13, '1w'), (14, '1M');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        symbol TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
CREATE TABLE bars (
    symbol INTEGER NOT NULL,
    interval INTEGER NOT NULL,
    open_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    count INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    source INTEGER NOT NULL CHECK (source BETWEEN 0 AND 3),
    revision INTEGER NOT NULL,
    PRIMARY KEY (symbol, interval, open_time),
    CHECK (open_time < end_time),
    CHECK (0 < low AND low <= open AND low <= close AND low <= high),
    CHECK (open <= high AND close <= high AND high < 9e999),
    CHECK (0 <= volume AND volume < 9e999 AND 0 <= quote_volume AND quote_volume < 9e999),
    CHECK (0 <= taker_buy_volume AND taker_buy_volume <= volume),
    CHECK (0 <= taker_buy_quote_volume AND taker_buy_quote_volume <= quote_volume),
    CHECK (count >= 0)
) STRICT, WITHOUT ROWID;
CREATE INDEX suspect_bars ON bars (symbol, interval, open_time) WHERE source = 2;
CREATE TABLE recent_bars (
    symbol INTEGER NOT NULL,
    interval INTEGER NOT NULL,
    open_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    count INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    source INTEGER NOT NULL CHECK (source BETWEEN 0 AND 3),
    revision INTEGER NOT NULL,
    PRIMARY KEY (open_time, interval, symbol),
    CHECK (open_time < end_time),
    CHECK (0 < low AND low <= open AND low <= close AND low <= high),
    CHECK (open <= high AND close <= high AND high < 9e999),
    CHECK (0 <= volume AND volume < 9e999 AND 0 <= quote_volume AND quote_volume < 9e999),
    CHECK (0 <= taker_buy_volume AND taker_buy_volume <= volume),
    CHECK (0 <= taker_buy_quote_volume AND taker_buy_quote_volume <= quote_volume),
    CHECK (count >= 0)
) STRICT, WITHOUT ROWID;
CREATE TABLE recent_opens (
        interval INTEGER NOT NULL,
        open_time INTEGER NOT NULL,
        end_time INTEGER NOT NULL,
        PRIMARY KEY (interval, open_time)
    ) STRICT, WITHOUT ROWID;
CREATE TABLE open_bars (
    symbol INTEGER NOT NULL,
    interval INTEGER NOT NULL,
    open_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    count INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    source INTEGER NOT NULL CHECK (source BETWEEN 0 AND 3),
    PRIMARY KEY (interval, symbol),
    CHECK (open_time < end_time),
    CHECK (0 < low AND low <= open AND low <= close AND low <= high),
    CHECK (open <= high AND close <= high AND high < 9e999),
    CHECK (0 <= volume AND volume < 9e999 AND 0 <= quote_volume AND quote_volume < 9e999),
    CHECK (0 <= taker_buy_volume AND taker_buy_volume <= volume),
    CHECK (0 <= taker_buy_quote_volume AND taker_buy_quote_volume <= quote_volume),
    CHECK (count >= 0)
) STRICT, WITHOUT ROWID;
CREATE VIEW klines AS 
    SELECT 
    s.symbol AS symbol, i.interval AS interval, b.open_time AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    CASE b.source WHEN 0 THEN 'trades' WHEN 1 THEN 'flat' WHEN 2 THEN 'suspect' WHEN 3 THEN 'official' END AS source, b.revision AS revision
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN bars AS b ON b.symbol = s.id AND b.interval = i.id
UNION ALL
    SELECT 
    s.symbol AS symbol, i.interval AS interval, r.open_time AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    CASE b.source WHEN 0 THEN 'trades' WHEN 1 THEN 'flat' WHEN 2 THEN 'suspect' WHEN 3 THEN 'official' END AS source, b.revision AS revision
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN recent_opens AS r ON r.interval = i.id
    CROSS JOIN recent_bars AS b
        ON b.open_time = r.open_time AND b.interval = r.interval AND b.symbol = s.id
        AND b.end_time > s.folded_until
;
CREATE VIEW open_klines AS
    SELECT 
    s.symbol AS symbol, i.interval AS interval, b.open_time AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    CASE b.source WHEN 0 THEN 'trades' WHEN 1 THEN 'flat' WHEN 2 THEN 'suspect' WHEN 3 THEN 'official' END AS source, 0 AS revision
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.symbol = s.id AND b.interval = i.id;
CREATE VIEW klines_all AS
    SELECT *, 1 AS sealed FROM klines
    UNION ALL
    SELECT *, 0 AS sealed FROM open_klines;
-- 0002 running bars by parts
DROP VIEW klines_all;
DROP VIEW open_klines;
DROP TABLE open_bars;
CREATE TABLE open_bars (
    symbol INTEGER NOT NULL,
    interval INTEGER NOT NULL,
    open_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    quote_volume REAL NOT NULL,
    count INTEGER NOT NULL,
    taker_buy_volume REAL NOT NULL,
    taker_buy_quote_volume REAL NOT NULL,
    source INTEGER NOT NULL CHECK (source BETWEEN 0 AND 3),
    merged_until INTEGER NOT NULL,
    PRIMARY KEY (interval, symbol),
    CHECK (open_time < end_time),
    CHECK (0 < low AND low <= open AND low <= close AND low <= high),
    CHECK (open <= high AND close <= high AND high < 9e999),
    CHECK (0 <= volume AND volume < 9e999 AND 0 <= quote_volume AND quote_volume < 9e999),
    CHECK (0 <= taker_buy_volume AND taker_buy_volume <= volume),
    CHECK (0 <= taker_buy_quote_volume AND taker_buy_quote_volume <= quote_volume),
    CHECK (count >= 0)
) STRICT, WITHOUT ROWID;
CREATE VIEW open_klines AS 
    SELECT 
    s.symbol AS symbol, i.interval AS interval, b.open_time AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    CASE b.source WHEN 0 THEN 'trades' WHEN 1 THEN 'flat' WHEN 2 THEN 'suspect' WHEN 3 THEN 'official' END AS source, CAST(0 AS INTEGER) AS revision
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.interval = i.id AND b.symbol = s.id
    WHERE i.id = 0
UNION ALL
    SELECT
        s.symbol, i.interval, b.open_time,
        CAST(CASE WHEN b.count THEN b.open WHEN p.count THEN p.open WHEN m.count THEN m.open ELSE m.open END AS REAL),
        CAST(CASE WHEN b.count OR p.count OR m.count THEN max(CASE WHEN b.count THEN b.high ELSE 0 END, CASE WHEN p.count THEN p.high ELSE 0 END, CASE WHEN m.count THEN m.high ELSE 0 END) ELSE m.close END AS REAL),
        CAST(CASE WHEN b.count OR p.count OR m.count THEN min(CASE WHEN b.count THEN b.low ELSE 9e999 END, CASE WHEN p.count THEN p.low ELSE 9e999 END, CASE WHEN m.count THEN m.low ELSE 9e999 END) ELSE m.close END AS REAL),
        CAST(CASE WHEN m.count THEN m.close WHEN p.count THEN p.close WHEN b.count THEN b.close ELSE m.close END AS REAL),
        CAST(printf('%.15g', b.volume + ifnull(p.volume, 0) + m.volume) AS REAL),
        b.end_time - 1,
        CAST(printf('%.15g', b.quote_volume + ifnull(p.quote_volume, 0) + m.quote_volume) AS REAL),
        CAST(b.count + ifnull(p.count, 0) + m.count AS INTEGER),
        CAST(printf('%.15g', b.taker_buy_volume + ifnull(p.taker_buy_volume, 0) + m.taker_buy_volume) AS REAL),
        CAST(printf('%.15g', b.taker_buy_quote_volume + ifnull(p.taker_buy_quote_volume, 0) + m.taker_buy_quote_volume) AS REAL),
        CASE
            WHEN 2 IN (b.source, ifnull(p.source, -1), m.source) THEN 'suspect'
            WHEN b.count OR p.count OR m.count THEN 'trades'
            ELSE 'flat'
        END,
        CAST(0 AS INTEGER)
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.interval = i.id AND b.symbol = s.id
    CROSS JOIN open_bars AS m ON m.interval = 0 AND m.symbol = s.id
    LEFT JOIN recent_bars AS p
        ON p.open_time = m.open_time - 60000 AND p.interval = 0 AND p.symbol = s.id
        AND p.open_time >= b.merged_until
    WHERE i.id <> 0
;
CREATE VIEW klines_all AS 
    SELECT 
    s.symbol AS symbol, i.interval AS interval, b.open_time AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    CASE b.source WHEN 0 THEN 'trades' WHEN 1 THEN 'flat' WHEN 2 THEN 'suspect' WHEN 3 THEN 'official' END AS source, b.revision AS revision
    , 1 AS sealed
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN bars AS b ON b.symbol = s.id AND b.interval = i.id
UNION ALL
    SELECT 
    s.symbol AS symbol, i.interval AS interval, r.open_time AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    CASE b.source WHEN 0 THEN 'trades' WHEN 1 THEN 'flat' WHEN 2 THEN 'suspect' WHEN 3 THEN 'official' END AS source, b.revision AS revision
    , 1 AS sealed
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN recent_opens AS r ON r.interval = i.id
    CROSS JOIN recent_bars AS b
        ON b.open_time = r.open_time AND b.interval = r.interval AND b.symbol = s.id
        AND b.end_time > s.folded_until
UNION ALL
    SELECT 
    s.symbol AS symbol, i.interval AS interval, b.open_time AS open_time,
    b.open AS open, b.high AS high, b.low AS low, b.close AS close, b.volume AS volume,
    b.end_time - 1 AS close_time, b.quote_volume AS quote_volume, b.count AS count,
    b.taker_buy_volume AS taker_buy_volume, b.taker_buy_quote_volume AS taker_buy_quote_volume,
    CASE b.source WHEN 0 THEN 'trades' WHEN 1 THEN 'flat' WHEN 2 THEN 'suspect' WHEN 3 THEN 'official' END AS source, CAST(0 AS INTEGER) AS revision
    , 0 AS sealed
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.interval = i.id AND b.symbol = s.id
    WHERE i.id = 0
UNION ALL
    SELECT
        s.symbol, i.interval, b.open_time,
        CAST(CASE WHEN b.count THEN b.open WHEN p.count THEN p.open WHEN m.count THEN m.open ELSE m.open END AS REAL),
        CAST(CASE WHEN b.count OR p.count OR m.count THEN max(CASE WHEN b.count THEN b.high ELSE 0 END, CASE WHEN p.count THEN p.high ELSE 0 END, CASE WHEN m.count THEN m.high ELSE 0 END) ELSE m.close END AS REAL),
        CAST(CASE WHEN b.count OR p.count OR m.count THEN min(CASE WHEN b.count THEN b.low ELSE 9e999 END, CASE WHEN p.count THEN p.low ELSE 9e999 END, CASE WHEN m.count THEN m.low ELSE 9e999 END) ELSE m.close END AS REAL),
        CAST(CASE WHEN m.count THEN m.close WHEN p.count THEN p.close WHEN b.count THEN b.close ELSE m.close END AS REAL),
        CAST(printf('%.15g', b.volume + ifnull(p.volume, 0) + m.volume) AS REAL),
        b.end_time - 1,
        CAST(printf('%.15g', b.quote_volume + ifnull(p.quote_volume, 0) + m.quote_volume) AS REAL),
        CAST(b.count + ifnull(p.count, 0) + m.count AS INTEGER),
        CAST(printf('%.15g', b.taker_buy_volume + ifnull(p.taker_buy_volume, 0) + m.taker_buy_volume) AS REAL),
        CAST(printf('%.15g', b.taker_buy_quote_volume + ifnull(p.taker_buy_quote_volume, 0) + m.taker_buy_quote_volume) AS REAL),
        CASE
            WHEN 2 IN (b.source, ifnull(p.source, -1), m.source) THEN 'suspect'
            WHEN b.count OR p.count OR m.count THEN 'trades'
            ELSE 'flat'
        END,
        CAST(0 AS INTEGER)
        , 0 AS sealed
    FROM symbols AS s
    CROSS JOIN intervals AS i
    CROSS JOIN open_bars AS b ON b.interval = i.id AND b.symbol = s.id
    CROSS JOIN open_bars AS m ON m.interval = 0 AND m.symbol = s.id
    LEFT JOIN recent_bars AS p
        ON p.open_time = m.open_time - 60000 AND p.interval = 0 AND p.symbol = s.id
        AND p.open_time >= b.merged_until
    WHERE i.id <> 0
;
