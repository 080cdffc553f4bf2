-- Features of small (a738838d935ac74d), for Flink SQL. Fill in every WITH.
-- A table of events has the columns of its source, event_time and arrival (unix seconds), and position,
-- which rises in the order of arrival (of Kafka: BIGINT METADATA FROM 'offset' VIRTUAL). Others wait for a
-- topic that is quiet, as long as SET 'table.exec.source.idle-timeout' says.

CREATE TEMPORARY TABLE `sent` (
  `user` STRING,
  `id` STRING,
  `value` DOUBLE,
  `event_time` DOUBLE,
  `arrival` DOUBLE,
  `position` BIGINT,
  _when AS COALESCE(TIMESTAMPADD(MILLISECOND, (CASE WHEN ABS(arrival) < 9007199254 THEN CAST(ROUND(arrival * 1e6) AS BIGINT) END) / 1000, TIMESTAMP '1970-01-01 00:00:00.000'), TIMESTAMP '1970-01-01 00:00:00.000'),
  WATERMARK FOR _when AS _when - INTERVAL '1' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = 'sent',
  'properties.bootstrap.servers' = 'FILL IN',
  'scan.startup.mode' = 'earliest-offset',
  'format' = 'json'
);

CREATE TEMPORARY VIEW `_read_sent` AS
SELECT
  NULLIF(`user`, '') AS `user`,
  NULLIF(`id`, '') AS `id`,
  CASE WHEN `value` = 0e0 THEN 0e0 WHEN ABS(`value`) <= 1.7976931348623157e308 THEN `value` END AS `value`,
  CASE WHEN ABS(event_time) < 9007199254 THEN CAST(ROUND(event_time * 1e6) AS BIGINT) END AS _said,
  CASE WHEN ABS(arrival) < 9007199254 THEN CAST(ROUND(arrival * 1e6) AS BIGINT) END AS _arrival,
  `position` AS _position, _when
FROM `sent`;

CREATE TEMPORARY VIEW `_first_sent` AS
SELECT `user`, `id`, `value`, _said, _arrival, _position, _when
FROM `_read_sent`
WHERE `id` IS NULL
UNION ALL
SELECT `user`, `id`, `value`, _said, _arrival, _position, _when
FROM (
  SELECT *, LAG(_arrival) OVER (PARTITION BY `id` ORDER BY _when) AS _before
  FROM `_read_sent`
  WHERE `id` IS NOT NULL AND _said IS NOT NULL AND _arrival IS NOT NULL
) AS _all
WHERE _before IS NULL OR _arrival - _before > 3600000000;

CREATE TEMPORARY VIEW `_events_sent` AS
SELECT *, CAST(_time + 20000000000000000 AS STRING) || CAST(_arrival + 20000000000000000 AS STRING) || LPAD(CAST(COALESCE(_position, 0) AS STRING), 19, '0') AS _place
FROM (
  SELECT `user`, `id`, `value`, CASE WHEN _said < _arrival THEN _said ELSE _arrival END AS _time, _arrival, _position, _when
  FROM `_first_sent`
  WHERE _said IS NOT NULL AND _arrival IS NOT NULL
) AS _all;

CREATE TEMPORARY TABLE `orders` (
  `user` STRING,
  `item` STRING,
  `word` STRING,
  `value` DOUBLE,
  `event_time` DOUBLE,
  `arrival` DOUBLE,
  `position` BIGINT,
  _when AS COALESCE(TIMESTAMPADD(MILLISECOND, (CASE WHEN ABS(arrival) < 9007199254 THEN CAST(ROUND(arrival * 1e6) AS BIGINT) END) / 1000, TIMESTAMP '1970-01-01 00:00:00.000'), TIMESTAMP '1970-01-01 00:00:00.000'),
  WATERMARK FOR _when AS _when - INTERVAL '1' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = 'orders',
  'properties.bootstrap.servers' = 'FILL IN',
  'scan.startup.mode' = 'earliest-offset',
  'format' = 'json'
);

CREATE TEMPORARY VIEW `_read_orders` AS
SELECT
  NULLIF(`user`, '') AS `user`,
  NULLIF(`item`, '') AS `item`,
  NULLIF(`word`, '') AS `word`,
  CASE WHEN `value` = 0e0 THEN 0e0 WHEN ABS(`value`) <= 1.7976931348623157e308 THEN `value` END AS `value`,
  CASE WHEN ABS(event_time) < 9007199254 THEN CAST(ROUND(event_time * 1e6) AS BIGINT) END AS _said,
  CASE WHEN ABS(arrival) < 9007199254 THEN CAST(ROUND(arrival * 1e6) AS BIGINT) END AS _arrival,
  `position` AS _position, _when
FROM `orders`;

CREATE TEMPORARY VIEW `_events_orders` AS
SELECT *, CAST(_time + 20000000000000000 AS STRING) || CAST(_arrival + 20000000000000000 AS STRING) || LPAD(CAST(COALESCE(_position, 0) AS STRING), 19, '0') AS _place
FROM (
  SELECT `user`, `item`, `word`, `value`, CASE WHEN _said < _arrival THEN _said ELSE _arrival END AS _time, _arrival, _position, _when
  FROM `_read_orders`
  WHERE _said IS NOT NULL AND _arrival IS NOT NULL
) AS _all;

CREATE TEMPORARY TABLE `small_user_7d` (
  `user` STRING,
  `event_time` DOUBLE,
  `rate` DOUBLE
) WITH (
  'connector' = 'kafka',
  'topic' = 'small_user_7d',
  'properties.bootstrap.servers' = 'FILL IN',
  'key.format' = 'json',
  'key.fields' = 'user',
  'value.format' = 'json'
);

CREATE TEMPORARY VIEW `_known_small_user_7d` AS
SELECT
  `user` AS _key,
  _time, _arrival, _place, _when,
  CASE WHEN (`value` > 0.5e0 AND `id` <> 'x') THEN 1 END AS _x0,
  CAST(NULL AS BIGINT) AS _x1
FROM `_events_sent`
WHERE `user` IS NOT NULL
UNION ALL
SELECT
  `user` AS _key,
  _time, _arrival, _place, _when,
  CAST(NULL AS BIGINT) AS _x0,
  1 AS _x1
FROM `_events_orders`
WHERE `user` IS NOT NULL;

CREATE TEMPORARY TABLE `small_item_1h` (
  `item` STRING,
  `event_time` DOUBLE,
  `mean_1h` DOUBLE
) WITH (
  'connector' = 'kafka',
  'topic' = 'small_item_1h',
  'properties.bootstrap.servers' = 'FILL IN',
  'key.format' = 'json',
  'key.fields' = 'item',
  'value.format' = 'json'
);

CREATE TEMPORARY VIEW `_known_small_item_1h` AS
SELECT
  `item` AS _key,
  _time, _arrival, _place, _when,
  `value` AS _x0
FROM `_events_orders`
WHERE `item` IS NOT NULL;

CREATE TEMPORARY TABLE `small_user_lifetime` (
  `user` STRING,
  `event_time` DOUBLE,
  `last` STRING,
  `std` DOUBLE
) WITH (
  'connector' = 'kafka',
  'topic' = 'small_user_lifetime',
  'properties.bootstrap.servers' = 'FILL IN',
  'key.format' = 'json',
  'key.fields' = 'user',
  'value.format' = 'json'
);

CREATE TEMPORARY VIEW `_known_small_user_lifetime` AS
SELECT
  `user` AS _key,
  _time, _arrival, _place, _when,
  _place || `word` AS _x0,
  CASE WHEN `word` NOT IN ('it''s', 'a') THEN `value` END AS _x1
FROM `_events_orders`
WHERE `user` IS NOT NULL;

CREATE TEMPORARY TABLE `small_user_1d_seen` (
  `user` STRING,
  `event_time` DOUBLE,
  `seen_0` STRING,
  `seen_1` STRING
) WITH (
  'connector' = 'kafka',
  'topic' = 'small_user_1d_seen',
  'properties.bootstrap.servers' = 'FILL IN',
  'key.format' = 'json',
  'key.fields' = 'user',
  'value.format' = 'json'
);

CREATE TEMPORARY VIEW `_known_small_user_1d_seen` AS
SELECT
  `user` AS _key,
  _time, _arrival, _place, _when,
  `word` AS _x0
FROM `_events_orders`
WHERE `user` IS NOT NULL;

CREATE TEMPORARY TABLE `small_user_lifetime_history` (
  `user` STRING,
  `history_0` STRING,
  `history_1` STRING,
  `history_2` STRING,
  PRIMARY KEY (`user`) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'small_user_lifetime_history',
  'properties.bootstrap.servers' = 'FILL IN',
  'key.format' = 'json',
  'value.format' = 'json'
);

CREATE TEMPORARY VIEW `_known_small_user_lifetime_history` AS
SELECT
  `user` AS _key,
  _time, _arrival, _place, _when,
  _place || `item` AS _x0
FROM `_events_orders`
WHERE `user` IS NOT NULL;

EXECUTE STATEMENT SET
BEGIN
INSERT INTO `small_user_7d`
SELECT
  _key,
  CAST(_at AS DOUBLE),
  ((CAST(`clicks_7d` AS DOUBLE) + 1.0e0) / NULLIF(CAST(`orders_7d` AS DOUBLE) + 20.0e0, 0e0))
FROM (
  SELECT
    _key, CAST(TIMESTAMPDIFF(DAY, TIMESTAMP '1970-01-01 00:00:00.000', window_end) AS BIGINT) * 86400 + TIMESTAMPDIFF(SECOND, FLOOR(window_end TO DAY), window_end) AS _at,
    COUNT(_x0) AS `clicks_7d`,
    COUNT(_x1) AS `orders_7d`
  FROM (
    SELECT
      _key, window_start, window_end, _place,
      CASE WHEN _time >= _far THEN _x0 END AS _x0,
      CASE WHEN _time >= _far THEN _x1 END AS _x1
    FROM (
      SELECT *, (CAST(TIMESTAMPDIFF(DAY, TIMESTAMP '1970-01-01 00:00:00.000', window_end) AS BIGINT) * 86400 + TIMESTAMPDIFF(SECOND, FLOOR(window_end TO DAY), window_end) - 604800) * 1000000 AS _far
      FROM TABLE(HOP(TABLE `_known_small_user_7d`, DESCRIPTOR(_when), INTERVAL '4' HOUR, INTERVAL '7 04:00:00' DAY(1) TO SECOND))
    ) AS _all
  ) AS _all
  GROUP BY _key, window_start, window_end
) AS _all;
INSERT INTO `small_item_1h`
SELECT
  _key,
  CAST(_at AS DOUBLE),
  `mean_1h`
FROM (
  SELECT
    _key, CAST(TIMESTAMPDIFF(DAY, TIMESTAMP '1970-01-01 00:00:00.000', window_end) AS BIGINT) * 86400 + TIMESTAMPDIFF(SECOND, FLOOR(window_end TO DAY), window_end) AS _at,
    SUM(_x0) / NULLIF(CAST(COUNT(_x0) AS DOUBLE), 0e0) AS `mean_1h`
  FROM (
    SELECT
      _key, window_start, window_end, _place,
      CASE WHEN _time >= _far THEN _x0 END AS _x0
    FROM (
      SELECT *, (CAST(TIMESTAMPDIFF(DAY, TIMESTAMP '1970-01-01 00:00:00.000', window_end) AS BIGINT) * 86400 + TIMESTAMPDIFF(SECOND, FLOOR(window_end TO DAY), window_end) - 3600) * 1000000 AS _far
      FROM TABLE(HOP(TABLE `_known_small_item_1h`, DESCRIPTOR(_when), INTERVAL '5' MINUTE, INTERVAL '65' MINUTE))
    ) AS _all
  ) AS _all
  GROUP BY _key, window_start, window_end
) AS _all;
INSERT INTO `small_user_lifetime`
SELECT
  _key,
  CAST(_at AS DOUBLE) / 1000e0,
  SUBSTRING(`last` FROM 54),
  SQRT(CASE WHEN `std` < 0 THEN 0e0 ELSE `std` END)
FROM (
  SELECT
    _key, _arrival / 1000 + 1 AS _at,
    MAX(_x0) OVER _so_far AS `last`,
    VAR_POP(_x1) OVER _so_far AS `std`
  FROM `_known_small_user_lifetime`
  WINDOW _so_far AS (PARTITION BY _key ORDER BY _when RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
) AS _all;
INSERT INTO `small_user_1d_seen`
SELECT
  _key,
  CAST(_at AS DOUBLE),
  CASE WHEN CARDINALITY(`seen`) >= 1 THEN SUBSTRING(`seen`[1] FROM 54) END,
  CASE WHEN CARDINALITY(`seen`) >= 2 THEN SUBSTRING(`seen`[2] FROM 54) END
FROM (
  SELECT
    _key, CAST(TIMESTAMPDIFF(DAY, TIMESTAMP '1970-01-01 00:00:00.000', window_end) AS BIGINT) * 86400 + TIMESTAMPDIFF(SECOND, FLOOR(window_end TO DAY), window_end) AS _at,
    ARRAY_SORT(ARRAY_AGG(_x) FILTER (WHERE _x IS NOT NULL), FALSE) AS `seen`
  FROM (
    SELECT _key, window_start, window_end, MAX(_place) || _x0 AS _x
    FROM (
    SELECT
      _key, window_start, window_end, _place,
      CASE WHEN _time >= _far THEN _x0 END AS _x0
    FROM (
      SELECT *, (CAST(TIMESTAMPDIFF(DAY, TIMESTAMP '1970-01-01 00:00:00.000', window_end) AS BIGINT) * 86400 + TIMESTAMPDIFF(SECOND, FLOOR(window_end TO DAY), window_end) - 86400) * 1000000 AS _far
      FROM TABLE(HOP(TABLE `_known_small_user_1d_seen`, DESCRIPTOR(_when), INTERVAL '1' HOUR, INTERVAL '25' HOUR))
    ) AS _all
    ) AS _all
    GROUP BY _key, window_start, window_end, _x0
  ) AS _all
  GROUP BY _key, window_start, window_end
) AS _all;
INSERT INTO `small_user_lifetime_history`
SELECT
  _key,
  MAX(CASE WHEN _nth = 1 THEN SUBSTRING(_x0 FROM 54) END),
  MAX(CASE WHEN _nth = 2 THEN SUBSTRING(_x0 FROM 54) END),
  MAX(CASE WHEN _nth = 3 THEN SUBSTRING(_x0 FROM 54) END)
FROM (
  SELECT _key, _x0, ROW_NUMBER() OVER (PARTITION BY _key ORDER BY _place DESC) AS _nth
  FROM (
    SELECT _key, _place, _x0
    FROM `_known_small_user_lifetime_history`
    WHERE _x0 IS NOT NULL
  ) AS _all
) AS _all
WHERE _nth <= 3
GROUP BY _key;
END;
